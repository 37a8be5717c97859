"""The failover loop with a scripted transport, on a loop whose clock jumps to the next timer instead of waiting."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from tritonclient.grpc import service_pb2

from nearmesh import errors
from nearmesh.client import picker
from nearmesh.client.attempts import Call, Delivery, deliver
from nearmesh.client.experience import Experience
from nearmesh.client.picker import Endpoint
from nearmesh.client.receipt import OVERTAKEN
from nearmesh.client.transport import NotSent, Reply
from tests.client_routes import endpoint, route

T = TypeVar("T")
# What a node does when it is asked: after so many seconds, answer ("ok") or raise.
Act = tuple[float, str | errors.MeshError]
NEVER = 1e6


class JumpingSelector(selectors.DefaultSelector):
    """Nothing comes from outside, so instead of waiting time moves on."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "the loop waits for ever"
        self.now_s += max(0.0, timeout)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now_s


def on_jumping_clock(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


class ScriptedTransport:
    """Each node plays its acts in turn, the last one for ever."""

    def __init__(self, **acts: list[Act]) -> None:
        self._acts = acts
        self.asked: list[str] = []
        self.cancelled: list[str] = []

    async def infer(self, endpoint: Endpoint, request: Any, timeout_s: float) -> Reply:
        node = endpoint.node
        acts = self._acts[node]
        after_s, what = acts.pop(0) if len(acts) > 1 else acts[0]
        self.asked.append(node)
        try:
            await asyncio.sleep(min(after_s, timeout_s))
        except asyncio.CancelledError:
            self.cancelled.append(node)
            raise
        if after_s > timeout_s:
            raise errors.DeadlineExceeded("too late")
        if isinstance(what, errors.MeshError):
            raise what
        response = service_pb2.ModelInferResponse(model_name=node)
        response.parameters["nearmesh_service_ms"].double_param = 1.0
        return Reply(response, warm=True)

    async def live(self, endpoint: Endpoint, timeout_s: float) -> bool:
        raise NotImplementedError


class Outcome:
    """What became of one call."""

    def __init__(self, transport: ScriptedTransport, deadline_s: float, idempotent: bool) -> None:
        self.experience = Experience()
        self.delivery: Delivery | None = None
        self.error: errors.MeshError | None = None
        self.took_s = on_jumping_clock(self._run(transport, deadline_s, idempotent))

    async def _run(self, transport: ScriptedTransport, deadline_s: float, idempotent: bool) -> float:
        clock = asyncio.get_running_loop().time
        start_s = clock()
        call = Call(
            request=service_pb2.ModelInferRequest(model_name="m"),
            deadline_s=start_s + deadline_s,
            idempotent=idempotent,
            plan=self._plan(transport, clock),
        )
        try:
            self.delivery = await deliver(call, transport, self.experience)
        except errors.MeshError as error:
            self.error = error
        took_s = clock() - start_s
        assert len(asyncio.all_tasks()) == 1, "an attempt was left behind"
        return took_s

    def _plan(self, transport: ScriptedTransport, clock: Callable[[], float]) -> Callable[[], list[picker.Choice]]:
        # In alphabetical order of merit; each is expected to take 10 + 20 ms.
        found = route(*(endpoint(node, 10.0 + index / 10) for index, node in enumerate(sorted(transport._acts))))
        return lambda: picker.order(found, measured={}, out=self.experience.out("m", now_s=clock()))

    @property
    def node(self) -> str:
        assert self.delivery, self.error
        return self.delivery.choice.node


def call(transport: ScriptedTransport, *, deadline_s: float = 5.0, idempotent: bool = True) -> Outcome:
    return Outcome(transport, deadline_s, idempotent)


OK: Act = (0.03, "ok")
FROZEN: Act = (NEVER, "ok")
DEAD: Act = (0.01, errors.Unreachable("reset"))
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
    [errors.InvalidInput("shape"), errors.TooLarge("size"), errors.Unauthenticated("who"), errors.Unsupported("no")],
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
