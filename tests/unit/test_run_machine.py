"""How a run goes on: tables of what it is at and what is known of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from nearmesh_controlplane.rollouts.rollout import Plan, Rollout
from nearmesh_controlplane.rollouts.scope import Scope
from nearmesh_controlplane.runs import machine
from nearmesh_controlplane.runs.engine import EngineStatus
from nearmesh_controlplane.runs.folder import End, Judged
from nearmesh_controlplane.runs.machine import Training, Waiting
from nearmesh_controlplane.runs.run import (
    STATES,
    Asked,
    Check,
    Privacy,
    Promotion,
    Run,
    When,
    from_content,
)

from nearmesh.errors import InvalidInput

NOW = 1000.0
JUDGED = (Judged(node="a", examples=3, metrics={"accuracy": 0.5}),)
PASSED, REFUSED = Check(name="norm", passed=True, detail="0.1"), Check(name="mean", passed=False, detail="-0.1")


def run(state: str = "waiting", **more: Any) -> Run:
    asked = more.pop("asked", Asked(rounds=3, min_sites=2))
    values = {"promoted_by": "data/ann" if state in ("checking", "publishing", "rolling out") else "", **more}
    return Run(
        id="r1",
        model="m",
        parent_version="1",
        parent_digest="d",
        asked=asked,
        actor="data/ann",
        created_at_s=1.0,
        metric="accuracy",
        state=state,  # type: ignore[arg-type]
        **values,
    )


def look(engine: str = "running", **more: Any) -> Training:
    return Training(engine=EngineStatus(state=engine), **{"finished": 1, **more})  # type: ignore[arg-type]


def rollout(state: str, reason: str = "") -> Rollout:
    return Rollout(
        id=7,
        model="m",
        version="1-r1",
        digest="x",
        scope=Scope(),
        plan=Plan(strategy="canary", steps=(0.5,)),
        actor="me",
        created_at_s=0.0,
        state=state,  # type: ignore[arg-type]
        reason=reason,
        ended_at_s=5.0,
    )


def test_what_is_on_disk_is_what_was() -> None:
    full = run(
        "refused",
        asked=Asked(
            rounds=3,
            sites=("s",),
            strategy_options={"beta": 0.1},
            settings={"epochs": "2"},
            privacy=Privacy(noise_multiplier=1.0, clipping_norm=2.0),
            when=When(window="22:00-06:00"),
            promotion=Promotion(steps=(0.1, 0.5), largest_site_loss=0.0),
        ),
        nodes={"a": "site-1"},
        judged=JUDGED,
        checks=(PASSED, REFUSED),
        promotion=Promotion(steps=(0.2,)),
        revision=4,
    )
    assert from_content("r1", "m", "refused", 4, full.content()) == full
    assert from_content("r1", "m", "waiting", 0, run().content()) == run()


@pytest.mark.parametrize(
    ("known", "state", "reason"),
    [
        (Waiting(ready=["a", "b"]), "training", ""),
        (Waiting(ready=["b", "a"], busy="r0"), "waiting", "waits for run r0, which is at work"),
        (Waiting(ready=["a"]), "waiting", "1 of 2 sites are there that have data for m: a"),
        (Waiting(ready=[]), "waiting", "0 of 2 sites are there that have data for m"),
        (Waiting(ready=["a", "b"], closed="opens at 22:00"), "waiting", "opens at 22:00"),
    ],
)
def test_it_begins_when_nothing_is_missing(known: Waiting, state: str, reason: str) -> None:
    after = machine.waited(run(), known)
    assert (after.state, after.reason) == (state, reason)
    if state == "waiting":
        assert machine.waited(after, known) is after, "nothing is written while nothing is different"


def test_whoever_is_asked_keeps_its_pseudonym() -> None:
    once = machine.joined(run(), {"a": "site-1"})
    twice = machine.joined(once, {"a": "site-2", "b": "site-3"})
    assert twice.nodes == {"a": "site-1", "b": "site-3"}
    assert machine.joined(twice, {"b": "site-9"}) is twice


def test_an_attempt_is_counted_before_it_is_made_and_a_later_one_is_a_resumption() -> None:
    first = machine.attempted(run("training"))
    assert (first.tries, first.resumed, first.begun) == (1, 0, True)
    second = machine.attempted(machine.died(dataclasses.replace(first, engine_run="5"), "x", NOW))
    assert (second.tries, second.resumed, second.engine_run) == (2, 1, "")
    # The control plane itself was killed, again and again.
    killed = second
    for _ in range(20):
        killed = machine.attempted(dataclasses.replace(killed, engine_run="6"))
    assert (killed.tries, killed.resumed) == (2, 21)


GOES_ON = run("training", begun=True, tries=1, engine_run="5")


@pytest.mark.parametrize(
    ("before", "known", "state", "words"),
    [
        (GOES_ON, look(), "training", ""),
        (GOES_ON, look(judged=JUDGED), "training", ""),
        (GOES_ON, look("running", judged=JUDGED, end=End()), "trained", ""),
        (GOES_ON, look("finished", judged=JUDGED, end=End(), fresh=True), "trained", ""),
        (GOES_ON, look("finished", end=End(reason="no site answers")), "failed", "no site answers"),
        # It ended in the middle, whatever Flower calls that.
        (GOES_ON, look("failed", last_words="KeyError: 'w'"), "training", "is taken up again: KeyError: 'w'"),
        (GOES_ON, look("finished"), "training", "is taken up again: its Flower run is finished"),
        (GOES_ON, look("stopped"), "training", "is taken up again: its Flower run is stopped"),
        (GOES_ON, look("lost"), "training", "is taken up again: its Flower run is lost"),
        (dataclasses.replace(GOES_ON, tries=8), look("failed"), "failed", "8 attempts in a row"),
        # Its schedule: only between two rounds, and not for what comes after the last one.
        (GOES_ON, look(closed="opens at 22:00"), "training", ""),
        (GOES_ON, look(closed="opens at 22:00", resting=True), "waiting", "opens at 22:00"),
        (GOES_ON, look(closed="opens at 22:00", resting=True, finished=3), "training", ""),
        # Stopping: after the round, or at once.
        (dataclasses.replace(GOES_ON, stopping="round"), look(), "training", ""),
        (dataclasses.replace(GOES_ON, stopping="round"), look(fresh=True), "stopped", "stopped by request"),
        (dataclasses.replace(GOES_ON, stopping="round"), look(resting=True), "stopped", "stopped by request"),
        (dataclasses.replace(GOES_ON, stopping="now"), look(), "stopped", "stopped by request"),
        (dataclasses.replace(GOES_ON, stopping="now"), look(judged=JUDGED, end=End()), "stopped", "stopped"),
        # An app of the data team's own says nothing but that it has ended.
        (dataclasses.replace(GOES_ON, own_app=True), look("finished"), "trained", ""),
        (dataclasses.replace(GOES_ON, own_app=True), look("failed"), "training", "is taken up again"),
        # Promoted before it was trained.
        (dataclasses.replace(GOES_ON, promoted_by="data/ann"), look(judged=JUDGED, end=End()), "checking", ""),
    ],
)
def test_what_becomes_of_a_run_in_training(before: Run, known: Training, state: str, words: str) -> None:
    after = machine.trained(before, known, NOW)
    assert (after.state, after.reason.startswith(words)) == (state, True), after.reason
    assert (after.ended_at_s == NOW) == (state in ("trained", "failed", "stopped"))
    if state == "training" and not words:
        assert after is before
    if state == "waiting":
        assert (after.begun, after.engine_run) == (False, ""), "that is no resumption"


def test_a_round_that_ends_forgives_what_died_before() -> None:
    before = dataclasses.replace(GOES_ON, tries=7, reason="is taken up again: x")
    after = machine.trained(before, look(fresh=True), NOW)
    assert (after.tries, after.reason) == (0, "")
    assert machine.trained(after, look(fresh=True), NOW) is after


def test_the_first_attempts_follow_at_once_and_later_ones_are_further_and_further_apart() -> None:
    delays = [machine.died(dataclasses.replace(GOES_ON, tries=n), "x", NOW).again_at_s - NOW for n in range(1, 8)]
    assert delays == [0, 0, 2, 4, 8, 16, 30]


def test_the_gate_refuses_by_the_figures() -> None:
    checked = machine.checked(run("checking"), [PASSED], NOW)
    assert (checked.state, checked.checks) == ("checking", (PASSED,))
    assert machine.built(checked, [PASSED], NOW).state == "publishing"
    refused = machine.built(checked, [REFUSED], NOW)
    assert (refused.state, refused.reason, refused.checks) == ("refused", "mean: -0.1", (PASSED, REFUSED))
    assert machine.checked(run("checking"), [REFUSED], NOW).state == "refused"
    stopping = dataclasses.replace(checked, stopping="now")
    assert machine.built(stopping, [PASSED], NOW).state == "stopped"


def test_a_step_that_ends_the_control_plane_each_time_is_given_up() -> None:
    now = run("checking")
    for _ in range(machine.MAX_TRIES):
        now = machine.tried(now, NOW)
        assert now.state == "checking"
    assert "given up after 8 attempts: each ended the control plane" in machine.tried(now, NOW).reason
    # What was away was nobody's fault.
    assert machine.put_off(machine.tried(run("checking"), NOW), "away", NOW).tries == 0


@pytest.mark.parametrize(
    ("state", "stopping", "becomes", "words"),
    [
        ("running", "", "rolling out", ""),
        ("rolling back", "", "rolling out", ""),
        ("done", "", "served", "why"),
        ("done", "now", "served", "why"),
        ("failed", "", "rolled back", "its rollout failed: why"),
        ("aborted", "", "rolled back", "its rollout was ended: why"),
        ("aborted", "now", "stopped", "its rollout was taken back: why"),
    ],
)
def test_a_run_ends_as_its_rollout_does(state: str, stopping: str, becomes: str, words: str) -> None:
    before = run("rolling out", rollout=7, stopping=stopping)
    after = machine.rolled_out(before, rollout(state, "why"))
    assert (after.state, after.reason) == (becomes, words)
    assert after.ended_at_s == (5.0 if becomes != "rolling out" else 0.0)


def test_what_is_published_is_rolled_out_unless_it_is_stopped() -> None:
    after = machine.published(run("publishing"), "1-r1", "x", NOW)
    assert (after.state, after.version, after.digest) == ("rolling out", "1-r1", "x")
    stopped = machine.published(run("publishing", stopping="now"), "1-r1", "x", NOW)
    assert (stopped.state, stopped.reason) == ("stopped", "m@1-r1 is published, and was not rolled out")


@pytest.mark.parametrize("state", STATES)
def test_stop_in_every_state(state: str) -> None:
    if state in ("served", "refused", "rolled back", "stopped", "failed"):
        with pytest.raises(InvalidInput, match=f"run r1 of m is {state} already"):
            machine.stop(run(state), NOW)
        return
    after = machine.stop(run(state), NOW)
    if state in ("waiting", "trained"):
        assert after.state == "stopped"
    else:
        assert (after.state, after.stopping) == (state, "round" if state == "training" else "now")
        assert machine.stop(after, NOW).stopping == "now"


@pytest.mark.parametrize("state", STATES)
def test_promote_in_every_state(state: str) -> None:
    before = run(state, judged=JUDGED, checks=(REFUSED,), version="1-r1" if state == "rolled back" else "")
    wanted = Promotion(step_s=2.0)
    if state in ("trained", "refused"):
        after = machine.promoted(before, "data/bob", wanted)
        assert (after.state, after.promoted_by, after.promotion, after.checks) == ("checking", "data/bob", wanted, None)
    elif state in ("checking", "publishing", "rolling out"):
        assert machine.promoted(before, "data/bob", wanted) is before
    else:
        words = "`nearmesh model deploy m 1-r1`" if state == "rolled back" else "one that is trained can be promoted"
        with pytest.raises(InvalidInput, match=words):
            machine.promoted(before, "data/bob", wanted)


def test_nothing_is_promoted_that_no_site_has_judged() -> None:
    with pytest.raises(InvalidInput, match="before the sites had judged"):
        machine.promoted(run("refused"), "data/bob", Promotion())
    with pytest.raises(InvalidInput, match="an app of your own"):
        machine.promoted(run("trained", own_app=True), "data/bob", Promotion())


@pytest.mark.parametrize(
    ("parent", "version"),
    [("1", "1-r1"), ("1.2-r0a1b2c3d", "1.2-r1"), ("v-r12", "v-r12-r1"), ("1-r0a1b2c3d-x", "1-r0a1b2c3d-x-r1")],
)
def test_versions_of_runs_do_not_get_longer(parent: str, version: str) -> None:
    assert dataclasses.replace(run(), parent_version=parent).new_version == version
