"""A federated run from its start to a served int8 version, while the model answers requests."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from nearmesh.v1 import catalog_pb2, run_pb2
from tests.integration.federated_mesh import MODEL, STUBBORN, FederatedMesh, asking, federated_mesh, points

pytest.importorskip("flwr", reason="federated runs need the extra `rounds`")

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(300)]

# 20 requests a second while the run goes on.
EVERY_S = 0.05
# A version that passed every check and fails in the canary is gone again within this, once it is known.
BACK_WITHIN_S = 10.0


@asynccontextmanager
async def asked_all_the_while(mesh: FederatedMesh, *models: str) -> AsyncIterator[list[str]]:
    """Asks each node in turn for each model; what failed."""
    errors: list[str] = []
    stubs = [node.stub() for node in mesh.nodes]
    rows, _ = points(5, 8)

    async def ask() -> None:
        while True:
            for stub, model in itertools.product(stubs, models):
                request = service_pb2.ModelInferRequest(model_name=model)
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


async def test_runs_end_in_a_better_version_that_is_served_or_in_their_parent(tmp_path: Path) -> None:
    """Two at a time, of two models."""
    async with federated_mesh(tmp_path, (MODEL, STUBBORN)) as mesh:
        before = await mesh.right(mesh.nodes[0])
        async with asked_all_the_while(mesh, MODEL, STUBBORN) as errors:
            runs = mesh.runs()
            asked = asking(idempotency_key="once")
            started = await runs.Start(asked, timeout=10)
            assert (await runs.Start(asked, timeout=10)).id == started.id
            # Long enough for some answers to be compared.
            slow = run_pb2.PromoteOptions(steps=[0.5], step_s=30.0)
            stubborn = await runs.Start(asking(model=STUBBORN, promote=slow), timeout=10)
            back = asyncio.create_task(is_back_after_s(mesh, stubborn.id))
            ended = await mesh.ends(started.id)
            back_after_s = await back
        assert errors == []
        check_rounds(mesh, ended)
        assert await mesh.right(mesh.nodes[0]) > before + 0.2
        await check_lineage(mesh, ended)
        assert back_after_s < BACK_WITHIN_S, back_after_s


def check_rounds(mesh: FederatedMesh, run: Any) -> None:
    assert [record.number for record in run.rounds] == [0, 1, 2]
    for record in run.rounds:
        assert {one.node for one in record.sites} == {node.name for node in mesh.nodes}
        assert all(one.answer == run_pb2.SITE_ANSWER_COUNTED for one in record.sites), record
    assert run.rounds[2].metrics["accuracy"] > run.rounds[0].metrics["accuracy"] + 0.2
    assert run.gate.passed


async def check_lineage(mesh: FederatedMesh, run: Any) -> None:
    for node in mesh.nodes:
        await node.says(MODEL, lambda replica: replica.version == run.version and not replica.status.on_trial)
    async with mesh.plane.operator() as operator:
        newest = (await operator.model(MODEL)).versions[0]
    assert {"fp32", "int8"} <= {one["name"] for one in json.loads(newest.report_json)["variants"]}
    lineage = json.loads(newest.lineage_json)
    assert (lineage["run"], newest.version) == (run.id, run.version)
    assert not any(node.name in newest.lineage_json for node in mesh.nodes), "sites stand there as pseudonyms"


async def is_back_after_s(mesh: FederatedMesh, run: str) -> float:
    """From when the canary had enough answers to tell until every node has the parent alone, seconds."""
    await mesh.reaches(run, lambda found: found.rollout > 0)
    async with mesh.plane.operator() as operator:
        told_s = 0.0
        async for rollout in operator.watch_rollout(STUBBORN):
            if not told_s and rollout.state == catalog_pb2.ROLLOUT_STATE_ROLLING_BACK:
                told_s = time.monotonic()
    ended = await mesh.ends(run, run_pb2.RUN_STATE_ROLLED_BACK)
    assert ended.gate.passed, "it was the canary that told"
    for node in mesh.nodes:
        await node.says(STUBBORN, lambda replica: replica.version == "1" and not replica.status.on_trial)
    assert told_s
    return time.monotonic() - told_s
