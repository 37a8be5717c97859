"""`nearmesh model deploy`, `rollback` and `rollout` over a control plane that is only pretended."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest

from nearmesh.cli import output, rollouts
from nearmesh.client.admin import CHANGES
from nearmesh.errors import Unreachable
from nearmesh.v1 import catalog_pb2, node_pb2
from tests.fake_admin import DIGEST, Bench, deployment, local_mesh, replica, rollout, rollout_node

DONE, FAILED = catalog_pb2.ROLLOUT_STATE_DONE, catalog_pb2.ROLLOUT_STATE_FAILED


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("NEARMESH_MESH", "NEARMESH_CONTROL_PLANE", "NEARMESH_CA", "NEARMESH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Bench(local_mesh(tmp_path))


def bad() -> list[catalog_pb2.Rollout]:
    """One that was taken back."""
    refused = rollout_node("node-a", state=node_pb2.REPLICA_STATE_FAILED, detail="WARMUP_FAILED: 3")
    ended = {"state": FAILED, "reason": "node-a refuses it: WARMUP_FAILED: 3", "ended_at_s": 4.0}
    return [rollout(nodes=[refused]), rollout(**ended)]


def test_deploy_watches_a_rollout_to_its_end(run: Bench) -> None:
    done = run("model", "deploy", "digits@1", "--site", "site-a")
    assert done.exit_code == 0, done.output
    assert done.stdout == "digits@1 is wanted at every site; 1 node changed over in 12 s\n"
    assert done.stderr == "digits@1: step 2 of 2, 25 % of the requests\n"
    assert run.admin.done == [("watch_rollout", "digits", 7)], "by its number, over a connection of its own"
    record = json.loads(run("model", "deploy", "digits@1", "--json").stdout)
    assert record["progress"] == {"serving": ["node-a"], "pending": {}, "failed": {}}
    assert (record["digest"], record["rollout"]["state"], record["rollout"]["rollout"]) == (DIGEST, "done", 7)


def test_on_a_terminal_the_picture_changes(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    screen = StringIO()
    monkeypatch.setattr(output, "console", lambda err: Console(file=screen, force_terminal=True, width=120))
    done = run("model", "deploy", "digits@1")
    assert (done.exit_code, done.stdout) == (0, "digits@1 is wanted at every site; 1 node changed over in 12 s\n")
    shown = screen.getvalue()
    assert "step 2 of 2, 25 % of the requests" in shown and "node-a" in shown and "3 of 4" in shown, shown


def test_deploying_what_serves_already_changes_no_node(run: Bench) -> None:
    run.pretend(rollout_list=[rollout(state=DONE, ended_at_s=1.0)])
    assert run("model", "deploy", "digits@1").stdout == "digits@1 is wanted at every site; no node had to change over\n"


def test_where_and_how(run: Bench) -> None:
    arguments = ("--sites", "a, b", "--site", "c", "--regions", "us-east1", "--replicas", "2", "--strategy", "canary")
    steps = ("--steps", "0,5,25%", "--step-time", "2m", "--step-requests", "7", "--detach")
    done = run("model", "deploy", "digits@1", *arguments, *steps)
    assert done.exit_code == 0, done.output
    assert "nearmesh model rollout watch digits" in done.stdout
    options = catalog_pb2.RolloutOptions(step_s=120, step_requests=7)
    more = {
        "regions": ("us-east1",),
        "replicas": 2,
        "strategy": "canary",
        "steps": (0.0, 0.05, 0.25),
        "options": options,
    }
    assert run.admin.done == [("deploy", "digits", "1", ("a", "b", "c"), more)]
    detached = json.loads(run("model", "deploy", "digits@1", "--no-wait", "--json").stdout)
    assert (detached["progress"], detached["rollout"]) == (None, 7)
    assert run.admin.done[0][4]["strategy"] == "rolling"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digits",), "'digits' is not NAME@VERSION"),
        (("digits@1", "--steps", "5,x"), "no row of growing per cents"),
        (("digits@1", "--steps", "50,5"), "expected such as 5,25,50"),
        (("digits@1", "--steps", "100"), "below 100"),
        (("digits@1", "--steps", "5"), "--steps and --step-requests go with --strategy canary, not rolling"),
        (("digits@1", "--step-time", "5"), "expected such as 90s"),
        (("digits@1", "--strategy", "blue"), "'blue' is not one of"),
    ],
)
def test_what_is_no_deployment(run: Bench, arguments: tuple[str, ...], words: str) -> None:
    done = run("model", "deploy", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr


def test_a_version_that_was_taken_back_ends_with_exit_code_1_and_why(run: Bench) -> None:
    run.pretend(rollout_list=bad())
    done = run("model", "deploy", "digits@1")
    words = (
        "digits@1 was taken back by itself: node-a refuses it: WARMUP_FAILED: 3; the version before serves as it did"
    )
    assert (done.exit_code, done.stdout, done.stderr.splitlines()[-1]) == (1, "", f"error: {words}")
    done = run("model", "deploy", "digits@1", "--json")
    record = json.loads(done.stdout)
    assert done.exit_code == 1
    assert record["progress"]["failed"] == {"node-a": "WARMUP_FAILED: 3"}
    assert (record["rollout"]["state"], record["rollout"]["reason"]) == (
        "failed",
        "node-a refuses it: WARMUP_FAILED: 3",
    )
    assert run("model", "rollout", "watch", "digits").exit_code == 1


def test_who_stops_watching_is_told_that_it_goes_on(run: Bench) -> None:
    run.pretend(rollout_list=[rollout()], never_ends=True)
    done = run("model", "deploy", "digits@1", "--timeout", "0.05")
    assert done.exit_code == 1
    assert "after 0.05 s it has not ended: digits@1: step 2 of 2, 25 % of the requests; it goes on" in done.stderr


def test_a_control_plane_that_is_away_for_a_moment_is_waited_for(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "AGAIN_S", 0.0)
    cut = {"times": 3}

    async def watch(admin, name, id=0):
        cut["times"] -= 1
        yield rollout()
        if cut["times"] > 0:
            raise Unreachable("gone")
        yield rollout(state=DONE, ended_at_s=3.0)

    monkeypatch.setattr("tests.fake_admin.FakeAdmin.watch_rollout", watch)
    assert run("model", "deploy", "digits@1").exit_code == 0
    monkeypatch.setattr(rollouts, "AWAY_S", -1.0)
    cut["times"] = 3
    assert run("model", "rollout", "watch", "digits").stderr.splitlines()[-1] == "error: gone"


def test_rollouts_as_a_table_and_in_full(run: Bench) -> None:
    shown = run("model", "rollout", "list").stdout
    assert "digits@1" in shown and "canary" in shown and "operator/me" in shown
    found = json.loads(run("model", "rollout", "list", "digits", "--json").stdout)
    assert [(one["rollout"], one["state"], one["phase"], one["step"]) for one in found] == [
        (7, "running", "steps", 1),
        (7, "done", "steps", 1),
    ]
    assert "no rollout yet" in run("model", "rollout", "list", "other").stdout
    run.pretend(rollout_list=[rollout(nodes=[rollout_node("node-a", answered=12, failed=1, compared=4, agreed=3)])])
    shown = run("model", "rollout", "show", "digits", "--number", "7").stdout
    assert run.admin.done == [("rollout", "digits", 7)]
    assert "step 2 of 2, 25 % of the requests" in shown
    row = next(line for line in shown.splitlines() if line.startswith("node-a")).split()
    assert row[:10] == ["node-a", "0", "ready", "12", "1", "3", "of", "4", "5.2", "5.0"]
    record = json.loads(run("model", "rollout", "show", "digits", "--json").stdout)
    assert record["nodes"][0] | {"agreed": 3, "standing_ms_p95": 5.0} == record["nodes"][0]
    run.pretend(rollout_list=[rollout(nodes=[rollout_node("node-a")], state=DONE, ended_at_s=4.0)])
    assert run("model", "rollout", "show", "digits").stdout == "digits@1 is done\n", "nothing is counted any more"


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            rollout(phase=catalog_pb2.ROLLOUT_PHASE_SCOUTING, scout="a", share=0.05),
            "digits@1: first on a alone, 5 % of its requests",
        ),
        (
            rollout(phase=catalog_pb2.ROLLOUT_PHASE_LOADING, nodes=[rollout_node("a"), rollout_node("b", state=1)]),
            "digits@1: loading beside the standing version, 1 of 2 nodes have it",
        ),
        (
            rollout(nodes=[rollout_node("a", live=False)]),
            "digits@1: none of its nodes is there; it goes on when one is",
        ),
        (rollout(share=0.0), "digits@1: step 2 of 2, compared on copies of requests alone"),
        (
            rollout(
                phase=catalog_pb2.ROLLOUT_PHASE_ROLLING,
                state=catalog_pb2.ROLLOUT_STATE_PAUSED,
                nodes=[rollout_node("a", changed_over=True), rollout_node("b")],
            ),
            "digits@1 (paused): changing over, 1 of 2 nodes have",
        ),
        (
            rollout(state=catalog_pb2.ROLLOUT_STATE_ROLLING_BACK, reason="it is bad"),
            "digits@1 is rolling back: it is bad",
        ),
        (rollout(state=DONE, ended_at_s=2.0), "digits@1 is done"),
    ],
)
def test_what_it_is_at_in_one_line(found: catalog_pb2.Rollout, line: str) -> None:
    assert rollouts.headline(found) == line


def test_a_pull_is_shown_by_its_bytes(run: Bench) -> None:
    pulling = rollout_node("a", state=node_pb2.REPLICA_STATE_PULLING, pull_bytes=2_000_000, pulled_bytes=500_000)
    run.pretend(rollout_list=[rollout(nodes=[pulling, rollout_node("b", live=False)])])
    shown = run("model", "rollout", "show", "digits").stdout
    assert "pulling, 500.0 kB of 2.0 MB" in shown and "gone" in shown


@pytest.mark.parametrize("change", CHANGES)
def test_operators_hold_and_end_them(run: Bench, change: str) -> None:
    run.pretend(rollout_list=[rollout(state=catalog_pb2.ROLLOUT_STATE_PAUSED)])
    done = run("model", "rollout", change, "digits")
    assert (done.exit_code, done.stdout) == (0, "digits@1 (paused): step 2 of 2, 25 % of the requests\n")
    assert run.admin.done == [("change_rollout", "digits", change)]
    assert json.loads(run("model", "rollout", change, "digits", "--json").stdout)["state"] == "paused"


def test_rollback_waits_for_the_live_nodes(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def back(admin, name):
        return deployment(name, ("site-node-a",) if name == "digits" else ())

    monkeypatch.setattr("tests.fake_admin.FakeAdmin.rollback", back)
    run.pretend(replica_list=[replica("node-a", node_pb2.REPLICA_STATE_READY)])
    done = run("model", "rollback", "other")
    assert (done.exit_code, done.stdout) == (0, "other@1 is wanted at every site; 1 of 1 live nodes serve it\n")
    record = json.loads(run("model", "rollback", "other", "--json").stdout)
    assert record["progress"] == {"serving": ["node-a"], "pending": {}, "failed": {}}
    run.pretend(replica_list=[replica("node-a", node_pb2.REPLICA_STATE_LOADING)])
    assert "node-a (loading)" in run("model", "rollback", "other", "--timeout", "0.01").stderr
    run.pretend(replica_list=[replica("node-a", node_pb2.REPLICA_STATE_FAILED, "the warm-up is wrong")])
    assert run("model", "rollback", "other").stderr == "error: other@1 failed on node-a: the warm-up is wrong\n"
    assert json.loads(run("model", "rollback", "other", "--no-wait", "--json").stdout)["progress"] is None


def test_a_rollout_of_a_first_version_goes_back_to_nothing(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def back(admin, name):
        return catalog_pb2.Deployment(model=name, rollout=7)

    monkeypatch.setattr("tests.fake_admin.FakeAdmin.rollback", back)
    done = run("model", "rollback", "digits")
    assert done.stdout == "the rollout of digits is taken back; no version of it was deployed before\n"
