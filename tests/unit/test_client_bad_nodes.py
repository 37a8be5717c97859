"""Nodes that answer, and badly: engines that break, keys that are old, times far beyond the forecast."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from nearmesh import errors
from nearmesh.client import picker
from nearmesh.client.experience import Experience
from nearmesh.client.picker import Endpoint
from nearmesh.client.sequences import Sequence
from tests.client_calls import DEAD, OK, SLOW, call, spent
from tests.client_routes import endpoint, route
from tests.client_transport import Act, ScriptedTransport

DENIED: Act = (0.01, errors.Unauthenticated("an unknown key"))


@pytest.mark.parametrize("idempotent", [True, False])
def test_a_node_that_does_not_know_the_tokens_key_fails_nobody(idempotent: bool) -> None:
    experience = Experience(budget=spent())
    for index in range(4):
        transport = ScriptedTransport(a=[DENIED], b=[OK])
        assert call(transport, idempotent=idempotent, experience=experience).node == "b"
        assert transport.asked == (["a", "b"] if index < 3 else ["b"])
    found = experience.statistics(now_s=1000.5)
    assert (found.failed, found.nodes["a"].failed) == (0, 3)


def test_a_token_that_nobody_believes_is_refused_soon_and_speaks_against_no_node() -> None:
    transport = ScriptedTransport(a=[DENIED], b=[DENIED], c=[DENIED], d=[OK])
    found = call(transport)
    assert isinstance(found.error, errors.Unauthenticated) and transport.asked == ["a", "b", "c"]
    alone = call(ScriptedTransport(a=[DENIED]))
    assert isinstance(alone.error, errors.Unauthenticated) and alone.took_s < 0.1
    for outcome in (found, alone):
        assert outcome.experience.out("m", now_s=1000.1) == set()
        assert outcome.experience.tally.take_unreported() == {}


BROKEN: Act = (0.01, errors.EngineFailure("broken"))


def test_broken_nodes_cost_no_error_while_another_works() -> None:
    transport = ScriptedTransport(a=[BROKEN], b=[(0.01, errors.MeshError("a bug"))], c=[(0.01, "garbled")], d=[OK])
    found = call(transport)
    assert found.node == "d" and found.experience.tally.failovers == 3
    assert found.delivery and found.delivery.attempts[2].error.startswith("ENGINE_FAILURE: the answer makes no sense")


def test_a_request_that_breaks_every_engine_does_not_go_round_the_mesh() -> None:
    transport = ScriptedTransport(a=[BROKEN], b=[BROKEN], c=[BROKEN], d=[BROKEN], e=[BROKEN])
    found = call(transport)
    assert isinstance(found.error, errors.EngineFailure) and transport.asked == ["a", "b", "c", "d"]
    assert found.experience.out("m", now_s=1000.1) == set()


def test_a_node_that_keeps_breaking_is_no_first_choice_any_more() -> None:
    experience = Experience(budget=spent())
    for index in range(4):
        transport = ScriptedTransport(a=[BROKEN], b=[OK])
        call(transport, experience=experience)
        assert transport.asked == (["a", "b"] if index < 3 else ["b"])
    found = experience.statistics(now_s=1000.5)
    assert found.ejections == 1 and found.nodes["a"].failed == 3
    assert found.nodes["a"].states == {"m": "ejected"} and found.nodes["b"].states == {"m": "healthy"}
    assert (found.calls, found.failed, found.nodes["b"].answered) == (4, 0, 4)


def test_a_node_far_slower_than_forecast_and_than_its_peers_is_no_first_choice_any_more() -> None:
    experience = Experience(budget=spent())
    for index in range(6):
        transport = ScriptedTransport(a=[SLOW], b=[OK])
        call(transport, experience=experience)
        assert transport.asked == (["a"] if index < 5 else ["b"])


def test_counts_for_the_control_plane() -> None:
    experience = Experience(budget=spent())
    call(ScriptedTransport(a=[DEAD], b=[(0.021, "ok")]), experience=experience)
    found = {key.node: calls for key, calls in experience.tally.take_unreported().items()}
    assert (found["a"].failed, found["a"].answered) == (1, 0)
    assert (found["b"].answered, found["b"].within_p50, found["b"].within_p95, found["b"].late) == (1, 0, 1, 0)
    assert found["b"].total_ms == pytest.approx(21.0) and found["b"].predicted_ms == pytest.approx(20.1)
    assert experience.tally.take_unreported() == {}


class Stream:
    """A node's stream, as much as a sequence asks of it: it answers, or does not know the token."""

    def __init__(self, node: str, accepts: bool) -> None:
        self._node, self._accepts = node, accepts

    async def write(self, request: Any) -> None:
        return None

    async def read(self) -> Any:
        if not self._accepts:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAUTHENTICATED, nothing, nothing, "an unknown key")
        return service_pb2.ModelStreamInferResponse(
            infer_response=service_pb2.ModelInferResponse(model_name=self._node)
        )

    def cancel(self) -> None:
        return None


class Streams:
    """Nodes by name, and whether each knows the token."""

    def __init__(self, **accepts: bool) -> None:
        self._accepts = accepts
        self.asked: list[str] = []

    def stream(self, endpoint: Endpoint) -> Stream:
        self.asked.append(endpoint.node)
        return Stream(endpoint.node, self._accepts[endpoint.node])

    def sequence(self) -> Sequence:
        found = route(*(endpoint(node, 10.0 + at) for at, node in enumerate(self._accepts)))
        return Sequence(
            self,  # type: ignore[arg-type]
            Experience(),
            lambda: found,
            lambda: picker.order(found, measured={}),
            lambda inputs, outputs: service_pb2.ModelInferRequest(model_name="m"),
            5.0,
        )


async def test_a_sequence_begins_at_a_node_that_knows_the_tokens_key() -> None:
    streams = Streams(a=False, b=True)
    async with streams.sequence() as sequence:
        answer = await sequence.infer({})
        assert (sequence.node, streams.asked) == ("b", ["a", "b"])
        assert [bool(attempt.error) for attempt in answer.receipt.attempts] == [True, False]


async def test_a_sequence_with_a_token_that_nobody_believes_is_refused_soon() -> None:
    streams = Streams(a=False, b=False, c=False, d=True)
    async with streams.sequence() as sequence:
        with pytest.raises(errors.Unauthenticated):
            await sequence.infer({})
    assert streams.asked == ["a", "b", "c"]
