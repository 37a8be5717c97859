"""The Open Inference Protocol's client side in tests: a stock tritonclient, a bare stub, and two tiny models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from nearmesh_agent.engines.base import Engine
from nearmesh_agent.serving.replica import Replica
from tritonclient.grpc import service_pb2_grpc

from nearmesh import tensors
from nearmesh.package import Package
from tests import tiny_models
from tests.inference_server import Running, load, serving

LEFT = np.arange(8, dtype=np.float32).reshape(2, 4)
RIGHT = np.full((2, 4), 10, np.float32)


@asynccontextmanager
async def two_models(folder: Path) -> AsyncIterator[Running]:
    """`adder` and `accumulator`."""
    replicas = [
        await load(folder / "adder", tiny_models.adder(folder / "adder")),
        await load(folder / "accumulator", tiny_models.accumulator(folder / "accumulator")),
    ]
    async with serving(replicas) as running:
        yield running


async def activated(described: Package, engine: Engine) -> Replica:
    """A replica of an engine made by the test. As far as it knows, eight rows take no longer than one."""
    replica = Replica(described, f"sha256:{described.name}", make=lambda: engine)
    for rows in (1, 8):
        replica.measured.times.add(rows, 0.001)
    await replica.activate()
    return replica


async def until(holds: Callable[[], bool]) -> None:
    """Returns once `holds()`, within 20 s: for what the server does behind its answers."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what happens behind an answer has no event for tests
            await asyncio.sleep(0.001)


@asynccontextmanager
async def client_of(running, **options):
    async with triton.InferenceServerClient(running.address, **options) as client:
        yield client


@asynccontextmanager
async def stub_of(running):
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def given(library=triton, **arrays):
    found = []
    for name, array in arrays.items():
        found.append(library.InferInput(name, array.shape, tensors.datatype_of(array)))
        found[-1].set_data_from_numpy(array)
    return found


def message(**changes):
    """A right request to `adder`, changed."""
    request = tensors.encode_request("adder", {"left": LEFT, "right": RIGHT})
    for name, value in changes.items():
        target = request.inputs[0] if name in ("name", "datatype", "shape") else request
        if name == "shape":
            target.shape[:] = value
        elif name == "raw":
            request.raw_input_contents[0] = value
        else:
            setattr(target, name, value)
    return request
