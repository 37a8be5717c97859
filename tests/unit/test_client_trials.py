"""Copies of calls to nodes on probation, with a scripted transport on a clock that jumps."""

from __future__ import annotations

import asyncio

import pytest
from tritonclient.grpc import service_pb2

from benchmarks.jumping_clock import on_jumping_clock
from nearmesh import errors
from nearmesh.client import picker
from nearmesh.client.attempts import Call
from nearmesh.client.budget import Budget
from nearmesh.client.experience import Experience
from nearmesh.client.health import FIRST_OUT_S, GOOD_TRIALS, TRIAL_EVERY_S
from nearmesh.client.trials import Trials
from nearmesh.routing import Times
from tests.client_routes import endpoint, route
from tests.client_transport import NEVER, Act, ScriptedTransport


class Run:
    """Node `a` has erred and its time out is over; copies are considered with each of `count` calls."""

    def __init__(
        self,
        *acts: Act,
        tokens: float = 5.0,
        idempotent: bool = True,
        count: int = GOOD_TRIALS,
        network_ms: float = 10.0,
    ) -> None:
        self.experience = Experience(budget=Budget(share=0.0, start=tokens))
        self.transport = ScriptedTransport(a=list(acts), b=[(0.03, "ok")])
        on_jumping_clock(self._run(idempotent, count, network_ms))

    async def _run(self, idempotent: bool, count: int, network_ms: float) -> None:
        clock, experience = asyncio.get_running_loop().time, self.experience
        for _ in range(3):
            experience.erred("a", "m", Times.certain(30.0), now_s=clock())
        await asyncio.sleep(FIRST_OUT_S)
        trials = Trials(self.transport, experience)
        for _ in range(count):
            out = experience.out("m", now_s=clock())
            choices = picker.order(route(endpoint("a", network_ms), endpoint("b")), measured={}, out=out)
            request = service_pb2.ModelInferRequest(model_name="m")
            call = Call(request=request, deadline_s=clock() + 5, idempotent=idempotent, plan=list)
            trials.consider(call, choices)
            # Two calls at once make one copy.
            trials.consider(call, choices)
            await asyncio.sleep(TRIAL_EVERY_S)
        self.out = experience.out("m", now_s=clock())
        await trials.close()
        assert len(asyncio.all_tasks()) == 1, "a trial was left behind"

    @property
    def trials(self) -> int:
        assert len(self.transport.asked) == self.experience.tally.trials
        return self.experience.tally.trials


def test_good_answers_to_copies_bring_a_node_back() -> None:
    found = Run((0.03, "ok"), count=GOOD_TRIALS + 2)
    assert found.trials == GOOD_TRIALS and found.out == set()
    assert set(found.transport.asked) == {"a"}


@pytest.mark.parametrize(
    "bad", [(0.01, errors.EngineFailure("broken")), (0.01, "garbled"), (0.01, errors.Overloaded("full")), (NEVER, "ok")]
)
def test_one_bad_answer_keeps_it_out(bad: Act) -> None:
    found = Run((0.03, "ok"), bad, count=GOOD_TRIALS + 2)
    assert found.trials == 2 and found.out == {"a"}


@pytest.mark.parametrize(
    "error", [errors.InvalidInput("a float"), errors.NotFound("version 9"), errors.TooLarge("1 GB")]
)
def test_a_caller_s_mistake_says_nothing_of_the_node(error: errors.MeshError) -> None:
    found = Run((0.01, error), *[(0.03, "ok")] * GOOD_TRIALS, count=GOOD_TRIALS + 1)
    assert found.trials == GOOD_TRIALS + 1 and found.out == set()


def test_copies_are_paid_from_the_budget_of_hedges() -> None:
    assert Run((0.03, "ok"), tokens=1.0).trials == 1


def test_a_call_that_is_not_idempotent_is_not_copied() -> None:
    assert Run((0.03, "ok"), idempotent=False).trials == 0


def test_closing_cancels_what_is_under_way() -> None:
    assert Run((2.0, "ok"), count=1, network_ms=1000.0).transport.cancelled == ["a"]
