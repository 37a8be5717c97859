"""A federated run from its start to a served int8 version, while the model answers requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2

from nearmesh.v1 import run_pb2
from tests.integration.federated_mesh import MODEL, FederatedMesh, asking, federated_mesh, points

pytest.importorskip("flwr", reason="federated runs need the extra `rounds`")

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(300)]

# Requests while the run goes on.
EVERY_S = 0.05


@asynccontextmanager
async def asked_all_the_while(mesh: FederatedMesh) -> AsyncIterator[list[str]]:
    """Asks each node in turn; what failed."""
    errors: list[str] = []
    stubs = [node.stub() for node in mesh.nodes]
    rows, _ = points(5, 4)

    async def ask() -> None:
        while True:
            for stub in stubs:
                request = service_pb2.ModelInferRequest(model_name=MODEL)
                request.inputs.add(name="x", datatype="FP32", shape=rows.shape)
                request.raw_input_contents.append(rows.tobytes())
                try:
                    await stub.ModelInfer(request, timeout=5)
                except grpc.aio.AioRpcError as error:
                    errors.append(f"{error.code().name}: {error.details()}")
                await asyncio.sleep(EVERY_S)

    task = asyncio.create_task(ask())
    try:
        yield errors
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_run_ends_in_a_better_version_that_is_served(tmp_path: Path) -> None:
    async with federated_mesh(tmp_path) as mesh:
        before = await mesh.right(mesh.nodes[0])
        async with asked_all_the_while(mesh) as errors:
            runs = mesh.runs()
            asked = asking(idempotency_key="once")
            started = await runs.Start(asked, timeout=10)
            assert (await runs.Start(asked, timeout=10)).id == started.id
            ended = await mesh.ends(started.id)
        assert errors == []
        assert [record.number for record in ended.rounds] == [0, 1, 2]
        for record in ended.rounds:
            assert {one.node for one in record.sites} == {node.name for node in mesh.nodes}
            assert all(one.answer == run_pb2.SITE_ANSWER_COUNTED for one in record.sites), record
        assert ended.rounds[2].metrics["accuracy"] > ended.rounds[0].metrics["accuracy"] + 0.2
        assert ended.gate.passed and ended.version
        for node in mesh.nodes:
            await node.says(MODEL, lambda replica: replica.version == ended.version and not replica.status.on_trial)
        assert await mesh.right(mesh.nodes[0]) > before + 0.2
        async with mesh.plane.operator() as operator:
            newest = (await operator.model(MODEL)).versions[0]
        assert {"fp32", "int8"} <= {one["name"] for one in json.loads(newest.report_json)["variants"]}
        lineage = json.loads(newest.lineage_json)
        assert (lineage["run"], newest.version) == (started.id, ended.version)
        assert not any(node.name in newest.lineage_json for node in mesh.nodes), "sites stand there as pseudonyms"
