"""How a rollout goes on: tables of what it is at and what its nodes say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from nearmesh_controlplane.rollouts import machine
from nearmesh_controlplane.rollouts.machine import Look, advanced
from nearmesh_controlplane.rollouts.placement import Candidate, placed
from nearmesh_controlplane.rollouts.rollout import Limits, Plan, Rollout, from_content
from nearmesh_controlplane.rollouts.scope import Scope
from nearmesh_controlplane.rollouts.views import View
from nearmesh_controlplane.rollouts.wants import OnTrial, Want, want

from nearmesh.errors import InvalidInput
from nearmesh.v1 import node_pb2 as pb

LOADING, READY = pb.REPLICA_STATE_LOADING, pb.REPLICA_STATE_READY
CANARY = Plan(strategy="canary", steps=(0.05, 0.5), step_s=10.0, step_requests=50, mirror_share=0.2)
ROLLING = Plan(strategy="rolling", step_s=2.0, node_limit_s=60.0)


def rollout(plan: Plan = CANARY, **more: Any) -> Rollout:
    values = {"phase": "loading" if plan.strategy == "canary" else "rolling", **more}
    return Rollout(
        id=1,
        model="m",
        version="2",
        digest="new",
        scope=Scope(),
        plan=plan,
        actor="me",
        created_at_s=0.0,
        **values,
    )


def node(name: str, state: pb.ReplicaState = READY, *, on_trial: bool = False, **more: Any) -> View:
    """A node with a standing version, and the new one in that state."""
    new = pb.ReplicaStatus(digest="new", state=state, on_trial=on_trial) if state else pb.ReplicaStatus()
    old = pb.ReplicaStatus(digest="old", state=READY)
    return View(**{"node": name, "standing": "old", "new": new, "old": old, **more})


def at(now_s: float, **more: Any) -> Look:
    return Look(now_s=now_s, **more)


# A canary


def test_one_node_goes_first_when_every_node_has_it() -> None:
    one, other = node("a", on_trial=True), node("b", LOADING, on_trial=True)
    assert advanced(rollout(), [one, other], at(5)) == rollout()
    assert advanced(rollout(), [one, one], at(1.9)) == rollout(), "who is asked is not known at once"
    begun = advanced(rollout(), [one, node("b", on_trial=True)], at(5, asked={"a": 1, "b": 2}))
    assert (begun.phase, begun.step, begun.scout, begun.since_s) == ("scouting", 0, "b", 5)
    # Who is gone is not waited for; who went this moment is. One alone needs nobody to go first.
    assert advanced(rollout(), [one, node("b", LOADING, expected=False, live=False)], at(5)).phase == "steps"
    assert advanced(rollout(), [one, node("b", LOADING, live=False)], at(5)).phase == "loading"
    # Who serves nothing yet has nothing to hold it against.
    assert advanced(rollout(), [one, node("b", 0, standing="")], at(5)).phase == "steps"
    assert advanced(rollout(), [node("b", 0, standing="")], at(5)).phase == "rolling"


SCOUTING = rollout(phase="scouting", scout="b", since_s=100.0)


@pytest.mark.parametrize(
    ("scout", "after_s", "requests", "phase"),
    [
        (node("b", on_trial=True), 9.0, 9, "scouting"),
        (node("b", on_trial=True), 1.0, 10, "steps"),
        (node("b", on_trial=True), 10.0, 0, "steps"),
        # It went without a word: whether it is to blame is the judge's to say.
        (node("b", live=False, lost_s=3.0), 20.0, 50, "scouting"),
        (node("b", live=False, expected=False, lost_s=5.5), 20.0, 50, "scouting"),
        # It leaves, or is left out: another one goes first.
        (node("b", expected=False), 20.0, 50, "loading"),
        (node("x"), 20.0, 50, "loading"),
    ],
)
def test_how_long_one_node_goes_first(scout: View, after_s: float, requests: int, phase: str) -> None:
    found = advanced(SCOUTING, [node("a", on_trial=True), scout], at(100 + after_s, requests=requests))
    assert found.phase == phase


@pytest.mark.parametrize(
    ("asked", "phase", "scout"),
    [({}, "steps", ""), ({"a": 4, "b": 1}, "steps", ""), ({"a": 5, "b": 1}, "scouting", "a")],
)
def test_who_goes_first_is_one_that_is_asked(asked: dict[str, int], phase: str, scout: str) -> None:
    views = [node("a", on_trial=True), node("b", on_trial=True)]
    found = advanced(SCOUTING, views, at(110, requests=1, asked=asked))
    assert (found.phase, found.scout) == (phase, scout)


@pytest.mark.parametrize(
    ("after_s", "requests", "step"),
    [(9.9, 1000, 0), (10.0, 49, 0), (10.0, 50, 1), (29.9, 0, 0), (30.0, 0, 1)],
)
def test_a_step_ends_after_its_time_and_its_requests(after_s: float, requests: int, step: int) -> None:
    found = advanced(rollout(phase="steps", since_s=100.0), [node("a")], at(100 + after_s, requests=requests))
    assert (found.phase, found.step) == ("steps", step)


def test_after_the_last_step_nodes_change_over() -> None:
    found = advanced(rollout(phase="steps", step=1), [node("a")], at(10, requests=50))
    assert (found.phase, found.step) == ("rolling", 1)
    assert found.share == 0.5, "who has not changed over yet gives it what it had"


# Nodes change over


def test_one_after_the_other() -> None:
    views = [node("a", 0), node("b", 0), node("c", 0, standing="new", new=pb.ReplicaStatus(digest="new", state=READY))]
    first = advanced(rollout(ROLLING), views, at(1))
    assert first.changing == ("a",)
    assert advanced(first, views, at(2)) is first
    views[0] = node("a", standing_ms=7.0)
    over = advanced(first, views, at(3))
    assert (over.changing, over.changed, over.since_s) == ((), {"a": 7.0}, 3)
    assert advanced(over, views, at(4.9)) is over, "it is watched for a while"
    second = advanced(over, views, at(5))
    assert second.changing == ("b",)
    views[1] = node("b")
    done = advanced(advanced(second, views, at(6)), views, at(8))
    assert (done.state, done.ended_at_s) == ("done", 8)


def test_all_at_once() -> None:
    views = [node("a", 0), node("b", 0)]
    told = advanced(rollout(Plan(strategy="all")), views, at(1))
    assert told.changing == ("a", "b")
    one = advanced(told, [node("a"), node("b", LOADING)], at(2))
    assert (one.changing, list(one.changed)) == (("b",), ["a"])


def test_who_serves_nothing_yet_does_not_wait_for_others() -> None:
    views = [node("a", 0), node("b", 0, standing=""), node("c", 0, standing="")]
    assert advanced(rollout(ROLLING), views, at(1)).changing == ("b", "c")


@pytest.mark.parametrize(
    ("view", "changing", "left_out"),
    [
        (node("a", LOADING, still_s=59.0), ("a",), {}),
        (node("a", LOADING, still_s=61.0), (), {"a": "nothing moved on it for 61 s"}),
        # On trial it does not yet answer by itself.
        (node("a", READY, on_trial=True), ("a",), {}),
        (node("a", pb.REPLICA_STATE_UNLOADED), (), {}),
        (node("a", LOADING, live=False), ("a",), {}),
    ],
)
def test_a_node_that_does_not_come_is_left_out(view: View, changing: tuple[str, ...], left_out: dict[str, str]) -> None:
    told = rollout(ROLLING, changing=("a",))
    found = advanced(told, [view, node("z", 0)], at(1))
    assert (found.changing if "a" in found.changing else (), dict(found.left_out)) == (changing, left_out)


def test_what_was_left_out_is_told_at_the_end() -> None:
    found = advanced(rollout(ROLLING, left_out={"b": "nothing moved"}, changed={"a": 0.0}), [node("a")], at(10))
    assert (found.state, found.reason) == ("done", "left out, and to follow by themselves: b: nothing moved")


def test_nothing_goes_on_while_nobody_is_there() -> None:
    away = [node("a", 0, expected=False, live=False)]
    for before in (rollout(), rollout(phase="steps"), rollout(ROLLING)):
        assert advanced(before, away, at(1000, requests=1000)) is before
    assert advanced(rollout(ROLLING), [], at(1)).state == "done", "it is for no node at all"


# Back


def test_a_breach_takes_it_back_from_every_phase() -> None:
    for before in (rollout(), rollout(phase="steps"), rollout(ROLLING), rollout(state="paused")):
        found = advanced(before, [node("a", on_trial=True)], at(7, breach="it is bad"))
        assert (found.state, found.reason, found.outcome, found.since_s) == ("rolling back", "it is bad", "failed", 7)


def test_it_has_ended_when_everybody_is_back() -> None:
    back = rollout(state="rolling back", reason="it is bad", changed={"a": 0.0}, phase="rolling")
    gone = pb.REPLICA_STATE_UNLOADING
    loading = pb.ReplicaStatus(digest="old", state=LOADING)
    for late in (node("a"), node("a", gone, old=loading), node("b", on_trial=True)):
        assert advanced(back, [late], at(1)) is back
    for there in (node("a", gone), node("a", 0), node("b", 0, old=loading), node("a", expected=False)):
        assert advanced(back, [there], at(1)).state == "failed"
    late = advanced(back, [node("a")], at(61))
    assert (late.state, late.reason) == ("failed", "it is bad; not yet back: a")


def test_what_operators_may_do_when() -> None:
    running = rollout(phase="steps", since_s=1.0)
    held = machine.paused(running)
    assert (held.state, machine.paused(held).state) == ("paused", "paused")
    assert machine.resumed(held, 9.0) == dataclasses.replace(running, since_s=9.0)
    assert machine.resumed(running, 9.0) is running
    ended = machine.aborted(held, "me", 5.0)
    assert (ended.state, ended.outcome, ended.reason) == ("rolling back", "aborted", "aborted by me")
    assert machine.aborted(ended, "you", 6.0) is ended
    for state in ("done", "aborted", "failed"):
        over = rollout(state=state)
        assert advanced(over, [node("a")], at(1, breach="late")) is over
        for change in (machine.paused, lambda r: machine.resumed(r, 1.0), lambda r: machine.aborted(r, "me", 1.0)):
            with pytest.raises(InvalidInput, match=f"the rollout of m@2 is {state}, so it cannot be"):
                change(over)


def test_a_paused_one_ends_what_it_began_and_begins_nothing() -> None:
    held = rollout(ROLLING, state="paused", changing=("a",))
    found = advanced(held, [node("a"), node("b", 0)], at(10))
    assert (found.changing, list(found.changed)) == ((), ["a"])
    assert advanced(found, [node("a"), node("b", 0)], at(100)) is found


# What nodes are told

TRIAL = OnTrial("new", 0.05, 0.2)


@pytest.mark.parametrize(
    ("found", "standing", "told"),
    [
        (rollout(), "old", Want("old", OnTrial("new", 0.0, 0.0))),
        (rollout(phase="scouting", scout="a"), "old", Want("old", TRIAL)),
        (rollout(phase="scouting", scout="b"), "old", Want("old", OnTrial("new", 0.0, 0.0))),
        (rollout(phase="steps"), "old", Want("old", TRIAL)),
        (rollout(phase="steps", state="paused"), "old", Want("old", TRIAL)),
        (rollout(phase="steps", step=1), "old", Want("old", OnTrial("new", 0.5, 0.2))),
        (rollout(phase="steps"), "", Want("")),
        (rollout(phase="steps"), "new", Want("new")),
        (rollout(phase="steps", left_out={"a": "stuck"}), "old", Want("old")),
        (rollout(phase="rolling", step=1), "old", Want("old", OnTrial("new", 0.5, 0.2))),
        (rollout(phase="rolling", step=1, changing=("a",)), "old", Want("new")),
        (rollout(phase="rolling", step=1, changed={"a": 0.0}), "old", Want("new")),
        (rollout(ROLLING), "old", Want("old")),
        (rollout(ROLLING, changing=("a",)), "", Want("new")),
        (rollout(phase="steps", state="rolling back"), "old", Want("old")),
        (rollout(ROLLING, changed={"a": 0.0}, state="rolling back"), "old", Want("old")),
        (rollout(ROLLING, changed={"a": 0.0}, state="rolling back"), "", Want("")),
    ],
)
def test_what_a_node_is_told(found: Rollout, standing: str, told: Want) -> None:
    assert want(found, "a", standing) == told


# On disk


def test_what_is_on_disk_is_all_of_it() -> None:
    scope = Scope(sites=("s",), regions=("r",), replicas=2)
    limits = Limits(error_rate=0.1, latency_factor=3.0, latency_floor_ms=1.0, agreement=0.8)
    full = dataclasses.replace(
        rollout(dataclasses.replace(CANARY, limits=limits)),
        scope=scope,
        placed=("a", "b"),
        changing=("b",),
        changed={"a": 3.0},
        left_out={"c": "stuck"},
        revision=4,
        state="paused",
    )
    assert from_content(full.id, full.model, full.state, full.revision, full.content()) == full


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": ()}, "steps are a canary's, which has at least one"),
        ({"strategy": "rolling"}, "steps are a canary's"),
        ({"steps": (0.5, 0.1)}, "steps 0.5, 0.1: each is from 0 to below 1"),
        ({"steps": (1.0,)}, "steps 1: each is from 0 to below 1"),
        ({"steps": (float("nan"),)}, "each is from 0"),
        ({"steps": (0.1,) * 21}, "21 steps; at most 20"),
        ({"step_s": -1.0}, "step_s is -1"),
        ({"step_s": float("inf")}, "step_s is inf"),
        ({"mirror_share": 1.5}, "mirror_share is 1.5; expected 0 to 1"),
        ({"node_limit_s": 0.0}, "node_limit_s is 0"),
    ],
)
def test_what_is_no_plan(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Plan(**{"strategy": "canary", "steps": (0.1,), **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"error_rate": 2.0}, "largest_error_rate is 2"),
        ({"latency_factor": 0.5}, "latency_factor is 0.5"),
        ({"latency_floor_ms": float("nan")}, "latency_floor_ms is nan"),
        ({"agreement": -0.1}, "smallest_agreement is -0.1"),
    ],
)
def test_what_are_no_limits(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Limits(**values)


# Where


@pytest.mark.parametrize(
    ("scope", "said", "covered"),
    [
        (Scope(), "all sites", ["s1/r1", "s2/r1", "s3/r2"]),
        (Scope(sites=("s1", "s3")), "s1, s3", ["s1/r1", "s3/r2"]),
        (Scope(regions=("r1",)), "r1", ["s1/r1", "s2/r1"]),
        (Scope(sites=("s1", "s3"), regions=("r1",)), "s1, s3 in r1", ["s1/r1"]),
        (Scope(regions=("r1",), replicas=1), "1 of the nodes of r1", ["s1/r1", "s2/r1"]),
    ],
)
def test_scopes(scope: Scope, said: str, covered: list[str]) -> None:
    assert str(scope) == said
    assert [place for place in ("s1/r1", "s2/r1", "s3/r2") if scope.covers(*place.split("/"))] == covered


def test_which_scopes_are_within_others() -> None:
    whole, site, region = Scope(), Scope(sites=("s",)), Scope(regions=("r",))
    assert whole.covers_all_of(site) and whole.covers_all_of(region)
    assert not site.covers_all_of(whole) and not region.covers_all_of(whole)
    assert Scope(sites=("s", "t")).covers_all_of(site) and not site.covers_all_of(Scope(sites=("s", "t")))


def _candidates(*places: str) -> list[Candidate]:
    """NODE/SITE/REGION/USD"""
    found = []
    for place in places:
        name, site, region, usd = place.split("/")
        found.append(Candidate(node=name, site=site, region=region, usd_per_hour=float(usd)))
    return found


NODES = _candidates("a/s1/r1/3", "b/s1/r1/2", "c/s2/r1/1", "d/s3/r2/1", "e/s4/r3/9")


@pytest.mark.parametrize(
    ("replicas", "demand", "kept", "chosen"),
    [
        (1, {}, (), "c"),
        # With no demand known: over regions and sites, the cheapest of each.
        (2, {}, (), "cd"),
        (3, {}, (), "cde"),
        (4, {}, (), "bcde"),
        (5, {}, (), "abcde"),
        (9, {}, (), "abcde"),
        # Where requests come from, and every site once before any twice.
        (1, {"r3": 5.0}, (), "e"),
        (2, {"r1": 9.0, "r3": 5.0}, (), "ce"),
        (2, {"r1": 11.0, "r3": 5.0}, (), "bc"),
        # Who has it keeps it.
        (2, {"r3": 5.0}, ("a",), "ae"),
        (1, {"r3": 5.0}, ("a", "b"), "a"),
        (2, {}, ("gone",), "cd"),
    ],
)
def test_which_nodes_are_chosen(replicas: int, demand: dict[str, float], kept: tuple[str, ...], chosen: str) -> None:
    assert placed(replicas, NODES, demand, kept) == tuple(chosen)
