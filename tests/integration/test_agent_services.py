"""What a node offers beside inference: health that tells the truth, reflection, and limits that speak clearly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.integration.adding_model import adding
from tests.integration.mesh_processes import Node, added, control_plane, node, question

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT_BYTES = 1024 * 1024


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def agent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node with one model and a limit of 1 MiB."""
    async with control_plane(tmp_path_factory.mktemp("control-plane")) as plane:
        async with plane.operator() as operator:
            await operator.publish(adding(tmp_path_factory.mktemp("adder"), "adder", "1", 1.0))
            await operator.deploy("adder", "1")
        folder: Path = tmp_path_factory.mktemp("node")
        async with node(plane, folder, "node", max_message_bytes=LIMIT_BYTES) as found:
            await found.serves("adder", "1")
            yield found


@pytest.mark.parametrize("service", ["", "adder"])
async def test_health_of_the_node_and_of_each_model_needs_no_token(agent: Node, service: str) -> None:
    watch = health_pb2_grpc.HealthStub(agent.channel()).Watch
    call = watch(health_pb2.HealthCheckRequest(service=service), timeout=10)
    # Readiness is looked at twice a second; the model may have answered before that.
    statuses = [answer.status async for answer in _until_serving(call)]
    assert statuses[-1] == health_pb2.HealthCheckResponse.SERVING


async def _until_serving(call: Any) -> AsyncIterator[Any]:
    async for answer in call:
        yield answer
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            call.cancel()
            return


async def test_health_of_an_unknown_model_is_not_found(agent: Node) -> None:
    check = health_pb2_grpc.HealthStub(agent.channel()).Check
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(health_pb2.HealthCheckRequest(service="nothing"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(agent: Node) -> None:
    ask = reflection_pb2_grpc.ServerReflectionStub(agent.channel(agent.plane.token())).ServerReflectionInfo
    call = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names


async def test_a_request_above_the_configured_limit_is_refused_and_the_next_one_is_right(agent: Node) -> None:
    large = tuple(float(number) for number in range(LIMIT_BYTES // 4 + 1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await agent.stub().ModelInfer(question("adder", x=large), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(LIMIT_BYTES) in caught.value.details()
    assert added(await agent.stub().ModelInfer(question("adder"), timeout=10)) == 1.0
