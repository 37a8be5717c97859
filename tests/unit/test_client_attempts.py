"""The failover loop with a scripted transport, on a loop whose clock jumps to the next timer instead of waiting."""

from __future__ import annotations

import asyncio

import pytest
from tritonclient.grpc import service_pb2

from benchmarks.jumping_clock import on_jumping_clock
from nearmesh import errors
from nearmesh.client import picker
from nearmesh.client.attempts import Call, deliver
from nearmesh.client.budget import Budget
from nearmesh.client.experience import Experience
from nearmesh.client.receipt import BESIDE, OVERTAKEN
from nearmesh.client.transport import NotSent
from tests.client_calls import DEAD, FROZEN, OK, SLOW, Outcome, call
from tests.client_routes import endpoint, route
from tests.client_transport import ScriptedTransport

# 250 ms beyond the expected 30 ms.
PATIENCE_S = 0.28


def test_the_first_choice_answers() -> None:
    transport = ScriptedTransport(a=[OK], b=[OK])
    found = call(transport)
    assert (found.node, transport.asked) == ("a", ["a"])
    assert found.delivery and [(x.node, x.error) for x in found.delivery.attempts] == [("a", "")]
    assert found.experience.take_unreported() == {"a": [pytest.approx(29.0)]}


@pytest.mark.parametrize(
    "error",
    [
        errors.Unreachable("reset"),
        errors.NotReady("loading"),
        errors.Draining("leaving"),
        errors.Overloaded("full", retry_after_ms=50),
        errors.NotFound("not here yet"),
        errors.EngineFailure("broken"),
        errors.MeshError("a bug"),
        NotSent("refused"),
    ],
)
def test_the_next_node_is_asked_at_once_when_one_fails(error: errors.MeshError) -> None:
    found = call(ScriptedTransport(a=[(0.01, error)], b=[OK]))
    assert found.node == "b" and found.took_s == pytest.approx(0.04)
    assert found.delivery and found.delivery.attempts[0].error == f"{error.reason}: {error.message}"


@pytest.mark.parametrize(
    "error",
    [errors.InvalidInput("shape"), errors.TooLarge("size"), errors.PermissionDenied("role"), errors.Unsupported("no")],
)
def test_an_error_that_no_node_can_mend_is_raised_at_once(error: errors.MeshError) -> None:
    transport = ScriptedTransport(a=[(0.01, error)], b=[OK])
    assert call(transport).error is error and transport.asked == ["a"]


def test_not_found_is_worth_one_more_node_and_no_round() -> None:
    missing = errors.NotFound("version 9")
    transport = ScriptedTransport(a=[(0.01, missing)], b=[(0.01, missing)], c=[OK])
    assert call(transport).error is missing and transport.asked == ["a", "b"]
    alone = call(ScriptedTransport(a=[(0.01, missing)]))
    assert alone.error is missing and alone.took_s < 0.1


def test_a_frozen_node_costs_its_patience_once_and_is_out_afterwards() -> None:
    transport = ScriptedTransport(a=[FROZEN], b=[OK])
    found = call(transport)
    assert found.node == "b" and found.took_s == pytest.approx(PATIENCE_S + 0.03)
    assert transport.cancelled == ["a"]
    assert found.delivery and found.delivery.attempts[0].error == OVERTAKEN
    assert found.experience.out("m", now_s=2000.0) == {"a"}


def test_a_slow_node_still_wins_when_the_next_is_slower() -> None:
    transport = ScriptedTransport(a=[(0.5, "ok")], b=[FROZEN])
    found = call(transport)
    assert found.node == "a" and found.took_s == pytest.approx(0.5)
    assert transport.cancelled == ["b"]
    assert "a" not in found.experience.out("m", now_s=2000.0)


def test_all_failing_is_tried_again_until_one_recovers() -> None:
    transport = ScriptedTransport(a=[DEAD, DEAD, DEAD, OK], b=[DEAD])
    found = call(transport)
    assert found.node == "a" and transport.asked.count("a") == 4
    assert found.took_s < 1


def test_a_node_that_recovers_is_asked_while_another_is_frozen() -> None:
    transport = ScriptedTransport(a=[DEAD, DEAD, OK], b=[FROZEN])
    found = call(transport)
    assert found.node == "a" and transport.asked.count("b") == 1


def test_at_the_deadline_the_last_error_is_raised() -> None:
    found = call(ScriptedTransport(a=[DEAD], b=[DEAD]), deadline_s=2.0)
    assert isinstance(found.error, errors.Unreachable)
    assert found.took_s == pytest.approx(2.0, abs=0.02)


def test_at_the_deadline_silence_is_named() -> None:
    found = call(ScriptedTransport(a=[FROZEN], b=[FROZEN]), deadline_s=2.0)
    assert isinstance(found.error, errors.DeadlineExceeded) and "asked: a, b" in found.error.message
    assert found.took_s == pytest.approx(2.0)


def test_a_deadline_below_patience_does_not_put_the_node_out() -> None:
    found = call(ScriptedTransport(a=[(0.1, "ok")], b=[OK]), deadline_s=0.05)
    assert isinstance(found.error, errors.DeadlineExceeded)
    assert found.experience.out("m", now_s=1000.05) == set()


def test_a_call_that_is_not_idempotent_is_made_once() -> None:
    transport = ScriptedTransport(a=[DEAD], b=[OK])
    assert isinstance(call(transport, idempotent=False).error, errors.Unreachable)
    frozen = ScriptedTransport(a=[(3.0, "ok")], b=[OK])
    assert call(frozen, idempotent=False).node == "a"
    assert (transport.asked, frozen.asked) == (["a"], ["a"])


def test_a_call_that_is_not_idempotent_and_never_left_is_made_elsewhere() -> None:
    found = call(ScriptedTransport(a=[(0.01, NotSent("refused"))], b=[OK]), idempotent=False)
    assert found.node == "b"


def test_no_node_at_all_is_no_route_at_the_deadline() -> None:
    found = call(ScriptedTransport(), deadline_s=1.0)
    assert isinstance(found.error, errors.NoRoute) and found.took_s == pytest.approx(1.0, abs=0.02)


def test_cancelling_the_call_cancels_its_attempts() -> None:
    transport = ScriptedTransport(a=[FROZEN], b=[FROZEN])

    async def cancelled() -> None:
        found = route(endpoint("a"), endpoint("b", 20.0))
        wanted = Call(
            request=service_pb2.ModelInferRequest(model_name="m"),
            deadline_s=asyncio.get_running_loop().time() + 10,
            plan=lambda: picker.order(found, measured={}),
        )
        async with asyncio.timeout(1.0):
            await deliver(wanted, transport, Experience())

    with pytest.raises(TimeoutError):
        on_jumping_clock(cancelled())
    assert sorted(transport.cancelled) == ["a", "b"]


# ---- hedging: a second request beside one that takes longer than forecast

HEDGE_S = 0.03


def test_a_call_that_takes_longer_than_its_95th_percentile_is_hedged_and_the_first_answer_counts() -> None:
    transport = ScriptedTransport(a=[SLOW], b=[OK])
    found = call(transport, experience=Experience())
    assert found.node == "b" and found.took_s == pytest.approx(HEDGE_S + 0.03)
    assert transport.cancelled == ["a"]
    assert found.delivery and found.delivery.hedged
    assert [(x.node, x.error) for x in found.delivery.attempts] == [("a", OVERTAKEN), ("b", "")]
    tally = found.experience.tally
    assert (tally.hedges, tally.hedges_won, tally.silences, tally.failovers) == (1, 1, 0, 0)


def test_a_call_in_time_is_not_hedged() -> None:
    transport = ScriptedTransport(a=[(0.029, "ok")], b=[OK])
    found = call(transport, experience=Experience())
    assert transport.asked == ["a"] and found.delivery and not found.delivery.hedged


def test_a_hedge_that_loses_is_cancelled_and_says_nothing_of_its_node() -> None:
    transport = ScriptedTransport(a=[(0.04, "ok")], b=[SLOW])
    found = call(transport, experience=Experience())
    assert found.node == "a" and transport.cancelled == ["b"]
    assert found.delivery and found.delivery.attempts[0].error == BESIDE
    assert found.experience.tally.hedges_won == 0
    assert found.experience.statistics(now_s=1001.0).nodes.keys() == {"a"}


def test_a_hedge_goes_to_another_site() -> None:
    transport = ScriptedTransport(a1=[SLOW], a2=[OK], b=[OK])
    assert call(transport, experience=Experience()).node == "b"
    alone = ScriptedTransport(a1=[SLOW], a2=[OK])
    assert call(alone, experience=Experience()).node == "a2"


def test_a_hedge_to_a_node_far_away_waits_as_long_as_that_one_would_take() -> None:
    far = Outcome(ScriptedTransport(a=[FROZEN], b=[(0.11, "ok")]), 5.0, True, Experience(), {"b": 100.0})
    assert far.node == "b" and far.took_s == pytest.approx(0.11 + 0.11)


def test_a_hedge_that_fails_costs_nothing() -> None:
    transport = ScriptedTransport(a=[(0.1, "ok")], b=[DEAD], c=[OK])
    found = call(transport, experience=Experience())
    assert found.node == "a" and transport.asked == ["a", "b"] and found.took_s == pytest.approx(0.1)


def test_a_call_that_is_not_idempotent_is_not_hedged() -> None:
    transport = ScriptedTransport(a=[SLOW], b=[OK])
    assert call(transport, idempotent=False, experience=Experience()).node == "a"
    assert transport.asked == ["a"]


def test_a_frozen_node_is_left_whatever_the_budget_and_is_counted_apart() -> None:
    experience = Experience(budget=Budget(share=0.0, start=1.0))
    transport = ScriptedTransport(a=[FROZEN], b=[FROZEN], c=[OK])
    found = call(transport, experience=experience)
    # b was asked beside a after 30 ms; then a and b have to be silent for all of their patience.
    assert found.node == "c" and found.took_s == pytest.approx(HEDGE_S + PATIENCE_S + 0.03, abs=0.001)
    assert (experience.tally.hedges, experience.tally.silences) == (1, 2)
    assert experience.out("m", now_s=1001.0) == {"a", "b"}


def test_who_is_silent_through_many_hedged_calls_is_out_as_one_that_is_silent_in_one() -> None:
    told: list[str] = []
    experience = Experience(told.append, budget=Budget(share=1.0))
    transport = ScriptedTransport(a=[FROZEN], b=[OK])
    found = route(endpoint("a"), endpoint("b", 10.1))
    silent_s: list[float] = []

    async def calls() -> None:
        clock = asyncio.get_running_loop().time
        start_s = clock()
        while not told:
            wanted = Call(
                request=service_pb2.ModelInferRequest(model_name="m"),
                deadline_s=clock() + 10,
                plan=lambda: picker.order(found, measured={}),
            )
            await deliver(wanted, transport, experience)
        silent_s.append(clock() - start_s)

    on_jumping_clock(calls())
    # Each call lasts 60 ms; the fifth ends after more than 280.
    assert silent_s == [pytest.approx(0.3)] and experience.tally.silences == 0
    assert experience.out("m", now_s=1001.0) == {"a"} and transport.asked.count("a") == 5


def test_races_lost_in_one_bad_moment_put_nobody_out() -> None:
    experience = Experience()
    for _ in range(50):
        experience.lost_race("a", "m", 60.0, now_s=1000.1, patience_s=0.28)
    assert experience.out("m", now_s=1000.1) == set()
    experience.answered("a")
    experience.lost_race("a", "m", 60.0, now_s=1001.0, patience_s=0.28)
    assert experience.out("m", now_s=1001.0) == set()


def test_hedges_stay_within_a_tenth_of_the_calls() -> None:
    experience = Experience()
    asked = 0
    for index in range(500):
        transport = ScriptedTransport(a=[OK if index % 3 else SLOW], b=[SLOW])
        call(transport, experience=experience)
        asked += len(transport.asked)
    assert experience.tally.hedges == asked - 500
    assert 40 <= experience.tally.hedges <= 52
