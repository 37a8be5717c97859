"""Unary calls of one sequence stay on one node, whatever the shares say: by Envoy's hash, and by gRPC's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh.routing import OBJECTIVES
from nearmesh.routing.table import Listener, ModelRoutes, RouteTable
from nearmesh.xds.resources import SEQUENCE_HEADER
from tests.integration.mesh_processes import until
from tests.integration.xds_fixtures import REGION, SmallMesh, gateway, small_mesh, xds_client

IDS = [f"call-{number}" for number in range(30)]
# The node that answers a call with that metadata.
Ask = Callable[[dict[str, str]], Awaitable[str]]


def share_out(small: SmallMesh, listener: Listener, shares: dict[str, float]) -> None:
    members = tuple(replace(small.nodes[name].endpoint, share=share) for name, share in shares.items())
    routes = ModelRoutes(default_objective="cheapest", by_objective=dict.fromkeys(OBJECTIVES, members))
    small.source.set(listener, RouteTable(region=REGION, models={"digits": routes}, nearest=members))


async def holds(small: SmallMesh, listener: Listener, ask: Ask) -> None:
    """Each sequence has its node, both nodes have sequences, and none moves when the shares do."""

    async def mostly(node: str) -> bool:
        counted = Counter([await ask({}) for _ in range(20)])
        return counted[node] >= 15

    async def nodes() -> dict[str, str]:
        return {name: await ask({SEQUENCE_HEADER: name}) for name in IDS}

    await until(lambda: mostly("a"))
    first = await nodes()
    assert await nodes() == first
    counted = Counter(first.values())
    assert set(counted) == {"a", "b"} and min(counted.values()) >= 5, counted
    share_out(small, listener, {"b": 0.98, "a": 0.02, "c": 0.0})
    await until(lambda: mostly("b"))
    assert await nodes() == first


async def test_behind_a_gateway(tmp_path: Path) -> None:
    async with small_mesh(tmp_path, "mesh") as small:
        share_out(small, "mesh", {"a": 0.98, "b": 0.02, "c": 0.0})
        async with gateway(small) as running, grpc.aio.insecure_channel(running.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

            async def ask(metadata: dict[str, str]) -> str:
                request = service_pb2.ModelInferRequest(model_name="digits")
                answer = await stub.ModelInfer(request, timeout=15, metadata=list(metadata.items()))
                return str(answer.parameters["node"].string_param)

            await holds(small, "mesh", ask)
            calls = {(call.model, call.objective) for call in running.calls.take()}
            assert calls <= {("digits", ""), ("digits", "nearest")}
        assert small.service.refused == 0


async def test_of_an_xds_client(tmp_path: Path) -> None:
    async with small_mesh(tmp_path, "public") as small:
        share_out(small, "public", {"a": 0.98, "b": 0.02, "c": 0.0})
        async with xds_client(small) as client:

            async def ask(metadata: dict[str, str]) -> str:
                answer = await client.call(metadata=metadata)
                assert "error" not in answer, answer
                return str(answer["node"])

            await holds(small, "public", ask)
        assert small.service.refused == 0
