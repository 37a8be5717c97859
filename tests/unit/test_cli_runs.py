"""`nearmesh run` over a control plane that is only pretended: runs as they are watched, shown and ended."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from nearmesh.cli import output, run_words
from nearmesh.errors import Unreachable
from nearmesh.v1 import run_pb2
from tests import fake_runs
from tests.fake_admin import FakeAdmin
from tests.fake_runs import RUN, TRAINING, ended, round_, run, served, site
from tests.run_bench import START, RunBench, run_bench

REFUSED, ROLLED_BACK = run_pb2.RUN_STATE_REFUSED, run_pb2.RUN_STATE_ROLLED_BACK
STOPPED, FAILED = run_pb2.RUN_STATE_STOPPED, run_pb2.RUN_STATE_FAILED


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunBench:
    return run_bench(tmp_path, monkeypatch)


def test_a_run_is_watched_until_it_is_served(bench: RunBench) -> None:
    done = bench(*START, "--auto-promote")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == [
        "run r7 is started",
        "digits@1 as it was, 9.5 s accuracy 0.8000 (node-a 0.7900, node-b 0.8000, node-c 0.8100)",
        "round 1 of 3, 9.5 s accuracy 0.9000 (node-a 0.8900, node-b 0.9000, node-c 0.9100)",
        "round 2 of 3, 9.5 s accuracy 0.9300 (node-a 0.9200, node-b 0.9300, node-c missing)",
        "run r7 of digits@1: round 3 of 3, training: 1 of 3 answered, missing node-b, node-c",
        "round 3 of 3, 9.5 s accuracy 0.9500 (node-a 0.9400, node-b 0.9500, node-c 0.9600)",
        "gate, finite: passed",
        "gate, site node-a: passed, accuracy 0.940, was 0.790",
    ]
    lines = done.stdout.splitlines()
    assert lines[-1] == "digits@1-r7 is served: 3 rounds, accuracy 0.9500, 1 has 0.8000, 43 s"
    rows = [line.split() for line in lines]
    assert ["2", "9.5", "0.9300", "0.9200", "0.9300", "missing"] in rows
    assert ["node-c", "site-node-c", "400", "2", "of", "3", "4.0", "0.0", "0.5", "0", "0"] in rows
    assert "round 2, node-c missing: no answer within 120 s" in lines
    assert bench.done[1:] == [("watch", RUN, True)]


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (
            ended(REFUSED, reason="site node-a: accuracy 0.71, was 0.79", gate=fake_runs.gate(passed=False)),
            "run r7 is refused by the gate: site node-a: accuracy 0.71, was 0.79; digits@1 serves as it did",
        ),
        (
            served(state=ROLLED_BACK, reason="node-a: fails 20 % of its requests"),
            "run r7 was rolled out as digits@1-r7 and taken back: node-a: fails 20 % of its requests; "
            "digits@1 serves as it did",
        ),
        (ended(FAILED, reason="only 1 site answered"), "run r7 failed after 3 rounds: only 1 site answered"),
        (
            ended(STOPPED, reason="operator/me stopped it", rounds=[round_(0, 0.8), round_(1, 0.9)]),
            "run r7 was stopped after 1 round: operator/me stopped it",
        ),
    ],
)
def test_a_run_that_did_not_go_well_ends_with_exit_code_1_and_why(
    bench: RunBench, end: run_pb2.Run, words: str
) -> None:
    bench.hear(run(), end)
    for command in (START, ("run", "watch", RUN), ("run", "promote", RUN)):
        done = bench(*command)
        assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, f"error: {words}")
    done = bench(*START, "--json")
    assert (done.exit_code, json.loads(done.stdout)["reason"]) == (1, end.reason)


def test_a_trained_run_waits_for_who_promotes_it(bench: RunBench) -> None:
    trained = ended(fake_runs.TRAINED, epsilon=1.234, delta=1e-5)
    bench.hear(run(), trained, interrupt=AssertionError("it is at rest"))
    done = bench(*START)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == (
        "run r7 is trained: 3 rounds, accuracy 0.9500, 1 has 0.8000, epsilon 1.23 at delta 1e-05, 43 s; "
        "`nearmesh run promote r7` takes it through the gate into serving"
    )
    bench.hear(trained, served())
    done = bench("run", "promote", RUN, "--steps", "5,50", "--smallest-mean-gain", "-0.1")
    assert (done.exit_code, done.stdout.splitlines()[-1].split(":")[0]) == (0, "digits@1-r7 is served")
    options = run_pb2.PromoteOptions(steps=[0.05, 0.5], smallest_mean_gain=-0.1)
    assert ("promote", RUN, options) in bench.done
    auto = ended(fake_runs.TRAINED, asked=fake_runs.asked(auto_promote=True))
    bench.hear(run(), auto, served())
    assert "is served" in bench(*START, "--auto-promote").stdout, "trained is not where it was to end"


def test_ctrl_c_detaches(bench: RunBench) -> None:
    bench.hear(run(), interrupt=KeyboardInterrupt())
    done = bench(*START)
    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == (
        "run r7 goes on; `nearmesh run watch r7` shows how far it is, and `nearmesh run stop r7` ends it"
    )


def test_programs_watch_by_lines_of_json(bench: RunBench) -> None:
    bench.hear(run(), served(), away=True)
    done = bench("run", "watch", RUN, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["state"], len(line["rounds"])) for line in lines] == [("training", 3), ("served", 4)]
    assert lines[0]["progress"] == {
        "round": 3,
        "phase": "training",
        "began_at_s": 130.0,
        "answered": ["node-a"],
        "missing": ["node-b", "node-c"],
    }
    assert lines[1]["gate"]["checks"][1]["name"] == "site node-a"
    assert done.stderr == "the control plane is away; the run goes on when it is back\n"


def test_what_json_promises(bench: RunBench) -> None:
    record = json.loads(bench("run", "show", RUN, "--json").stdout)
    assert record.keys() == {
        *("run", "model", "state", "reason", "metric", "parent_version", "parent_digest", "version", "digest"),
        *("rollout", "actor", "created_at_s", "ended_at_s", "resumed", "own_app", "epsilon", "delta", "asked"),
        *("progress", "rounds", "gate"),
    }
    assert (record["version"], record["rollout"], record["progress"]) == ("1-r7", 9, None)
    assert record["asked"]["strategy"] == "fedavg" and record["asked"]["privacy"] is None
    third = record["rounds"][2]
    assert third.keys() >= {"round", "began_at_s", "ended_at_s", "metrics", "train_metrics", "late", "sites"}
    assert [one["answer"] for one in third["sites"]] == ["counted", "counted", "missing"]
    assert third["sites"][0] == {
        "node": "node-a",
        "site": "site-node-a",
        "answer": "counted",
        "detail": "",
        "examples": 400,
        "metrics": {"accuracy": 0.92},
        "train_metrics": {},
        "update_norm": 0.5,
        "clipped": False,
        "train_s": 2.0,
        "yielded_s": 0.0,
        "suspect": False,
    }


def test_runs_in_a_table(bench: RunBench) -> None:
    done = bench("run", "list")
    row = next(line for line in done.stdout.splitlines() if "served" in line).split()
    assert row[:9] == ["r7", "digits@1", "fedavg", "3", "of", "3", "served", "accuracy", "0.9500"]
    assert [one["state"] for one in json.loads(bench("run", "list", "--json").stdout)] == ["training", "served"]
    assert "no run yet" in bench("run", "list", "--model", "other").stdout
    assert bench.done[-1] == ("list", "other", 50)


def test_one_run_in_full(bench: RunBench) -> None:
    odd = [
        site("node-a", 0.5, suspect=True, clipped=True, detail="12 times as long as the others'"),
        site("node-b", None, answer=run_pb2.SITE_ANSWER_REFUSED, detail="not a number in layer.weight"),
    ]
    more = {"sites": odd, "late": 2}
    found = served(
        rounds=[round_(0, 0.8), run_pb2.Round(number=1, metrics={"accuracy": 0.9}, **more)],
        asked=fake_runs.asked(
            strategy="krum",
            strategy_options={"num-malicious-nodes": 1},
            largest_norm=4,
            privacy=run_pb2.Privacy(noise_multiplier=1.5, clipping_norm=2),
            schedule=run_pb2.Schedule(window="22:00-06:00", idle_below=0.3, usd_per_hour_below=0.5),
        ),
        resumed=1,
        epsilon=2.0,
        delta=1e-5,
    )
    bench.hear(found)
    done = bench("run", "show", RUN)
    lines = done.stdout.splitlines()
    assert lines[:8] == [
        "run r7 of digits@1: served",
        "3 rounds, krum, num-malicious-nodes 1, at least 2 sites within 120 s each",
        "updates longer than 4 are shortened to it",
        "noise of 1.5 times the clipping norm, which is 2",
        "runs from 22:00 to 06:00 UTC, while sites serve with less than 30 % of themselves, "
        "while nodes cost less than 0.5 USD per hour",
        "differential privacy so far: epsilon 2.00 at delta 1e-05",
        "taken up again 1 time after something had died",
        f"published as digits@1-r7, sha256:{'ab' * 32}",
    ]
    rows = [line.split() for line in lines]
    assert ["1", "0.0", "0.9000", "0.5000", "shortened", "suspect", "refused", "-", "2"] in rows
    assert "round 1, node-a is suspect: 12 times as long as the others'" in lines
    assert "round 1, node-b refused: not a number in layer.weight" in lines
    assert ["site", "node-a", "passed", "accuracy", "0.940,", "was", "0.790"] in rows
    done = bench("run", "show", "nope")
    assert (done.exit_code, done.stderr) == (1, "error: no run 'nope'; `nearmesh run list` lists them\n")


def test_figures_of_training_do_not_stand_for_those_of_evaluation(bench: RunBench) -> None:
    unheard = site("node-a", None, answer=fake_runs.COUNTED, train_metrics={"accuracy": 0.99})
    bench.hear(run(rounds=[run_pb2.Round(number=1, metrics={"accuracy": 0.6}, sites=[unheard])]))
    rows = [line.split() for line in bench("run", "show", RUN).stdout.splitlines()]
    assert ["1", "0.0", "0.6000", "-"] in rows


def test_many_sites_are_told_by_the_lowest_and_the_highest(bench: RunBench) -> None:
    sites = [site(f"node-{number}", 0.5 + number / 100) for number in range(20)]
    sites.append(site("node-x", None))
    bench.hear(run(rounds=[run_pb2.Round(number=1, metrics={"accuracy": 0.6}, sites=sites)]))
    rows = [line.split() for line in bench("run", "show", RUN).stdout.splitlines()]
    assert ["1", "0.0", "0.6000", "0.5000", "0.6900", "20", "of", "21"] in rows


def test_stopping(bench: RunBench) -> None:
    done = bench("run", "stop", RUN)
    assert (done.exit_code, done.stdout) == (0, "run r7 of digits@1: stopped: operator/me stopped it\n")
    assert json.loads(bench("run", "stop", RUN, "--json").stdout)["state"] == "stopped"
    bench.hear(run(), stopping=True)
    done = bench("run", "stop", RUN)
    assert done.stdout == "run r7 ends after what is under way; `nearmesh run stop r7` again ends it at once\n"


def test_without_a_name_the_newest_run_is_meant(bench: RunBench) -> None:
    assert bench("run", "show").stdout.startswith("run r7 of digits@1: served\n")
    assert bench("run", "watch").exit_code == 0
    assert bench.done == [("list", "", 1), ("list", "", 1), ("watch", RUN, False)]
    bench.hear()
    for command in ("show", "watch"):
        done = bench("run", command)
        assert (done.exit_code, done.stderr) == (
            1,
            "error: no run yet: `nearmesh run start --model NAME` begins one\n",
        )


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (run(state=run_pb2.RUN_STATE_WAITING, reason="1 of 2 sites is there"), "waiting: 1 of 2 sites is there"),
        (run(progress=None), "starting, 2 of 3 rounds done"),
        (run(progress=None, reason="is taken up again: x"), "starting, 2 of 3 rounds done (is taken up again: x)"),
        (
            run(rounds=[], progress=run_pb2.RoundProgress(number=0, phase="evaluating", answered=["a", "b"])),
            "the parent, as it was, evaluating: 2 of 2 answered",
        ),
        (
            run(progress=run_pb2.RoundProgress(number=3, phase="waiting", answered=["a"], missing=["b", "c"])),
            "round 3 of 3, waiting for sites: 1 of 3 there, missing b, c",
        ),
        (
            ended(
                TRAINING, progress=run_pb2.RoundProgress(number=3, phase="evaluating", answered=["a"], missing=["b"])
            ),
            "the sites judge what came out: 1 of 2 answered, missing b",
        ),
        (
            ended(TRAINING, own_app=True, progress=run_pb2.RoundProgress(number=3, phase="evaluating")),
            "round 3 of 3 has ended",
        ),
        (run(progress=run_pb2.RoundProgress(phase="evaluating")), "the sites have judged the parent"),
        (run(progress=run_pb2.RoundProgress(number=4, phase="waiting")), "its 3 rounds have ended, and the app ends"),
        (run(progress=run_pb2.RoundProgress(number=2, phase="evaluating", missing=["b"])), "round 2 of 3 has ended"),
        (run(state=run_pb2.RUN_STATE_CHECKING), "the gate looks at what the rounds made"),
        (run(state=run_pb2.RUN_STATE_PUBLISHING, version="1-r7"), "publishing 1-r7"),
        (run(state=run_pb2.RUN_STATE_ROLLING_OUT, version="1-r7"), "rolling out digits@1-r7"),
        (run(state=99), "unknown"),
    ],
)
def test_what_it_is_at_in_one_line(found: run_pb2.Run, line: str) -> None:
    assert run_words.headline(found) == f"run r7 of digits@1: {line}"


def test_an_app_of_their_own_may_tell_only_figures_of_training() -> None:
    rounds = [run_pb2.Round(number=1, train_metrics={"train_loss": 0.25}, late=1)]
    found = ended(fake_runs.TRAINED, metric="", rounds=rounds, own_app=True)
    assert run_words.round_line(found, rounds[0]) == "round 1 of 3, 0.0 s train_loss 0.2500; 1 late answer dropped"
    assert run_words.verdict(found) == (True, "run r7 has ended: 1 round, train_loss 0.2500, 43 s")


# On a terminal


def test_on_a_terminal_the_picture_changes_and_ends_with_the_rollout(
    bench: RunBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    screen = StringIO()
    terminal, real = Console(file=screen, force_terminal=True, width=120), output.console
    monkeypatch.setattr(output, "console", lambda *, err=False: terminal if err else real())
    rolling = run(state=run_pb2.RUN_STATE_ROLLING_OUT, version="1-r7", rollout=9, progress=None, gate=fake_runs.gate())
    bench.hear(run(), rolling, rolling, served(), away=True)
    done = bench(*START, "--auto-promote")
    assert (done.exit_code, done.stderr) == (0, "run r7 is started\n")
    shown = screen.getvalue()
    for words in (
        "round 3 of 3, training: 1 of 3 answered, missing node-b, node-c",
        "the control plane is away",
        "rolling out digits@1-r7",
        "gate, site node-a: passed, accuracy 0.940, was 0.790",
        "step 2 of 2, 25 % of the requests",
    ):
        assert words in shown
    assert ("watch_rollout", "digits", 9) in bench.done


def test_a_rollouts_stream_that_breaks_does_not_end_the_watch(bench: RunBench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(admin: FakeAdmin, name: str, id: int = 0) -> Any:
        raise Unreachable("gone")
        yield

    monkeypatch.setattr(FakeAdmin, "watch_rollout", broken)
    rolling = run(state=run_pb2.RUN_STATE_ROLLING_OUT, version="1-r7", rollout=9)
    bench.hear(rolling, rolling, served())
    assert bench(*START, "--auto-promote").exit_code == 0
