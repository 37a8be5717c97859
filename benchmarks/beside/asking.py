"""Requests at a steady rate to a node that may have other work, and what of them is a window's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from benchmarks.figures import times
from nearmesh import tensors
from nearmesh.cli.output import note
from nearmesh.devmesh.load import unary_sample

MODELS = ("digits", "file-type", "text-recognizer")
RATE_PER_S = 20.0
ROUNDS, SECONDS = 5, 12.0
# After a change: what was under way ends, and what begins imports its libraries.
SETTLE_S = 1.0


def request(model: str) -> service_pb2.ModelInferRequest:
    """With a real input."""
    if model == "digits":
        return tensors.encode_request(model, {"pixels": np.full((1, 64), 8, np.float32)})
    return tensors.encode_request(model, unary_sample(model).inputs)


async def ask(stub: Any, asked: service_pb2.ModelInferRequest, rate_per_s: float, seconds: float) -> Mapping[str, Any]:
    """A window's figures: requests begin on schedule whether earlier ones have ended or not."""
    took_ms: list[float] = []
    errors: list[str] = []

    async def one() -> None:
        started = time.perf_counter()
        try:
            await stub.ModelInfer(asked, timeout=10.0)
        except grpc.aio.AioRpcError as error:
            errors.append(f"{error.code().name}: {error.details()}")
        took_ms.append((time.perf_counter() - started) * 1000)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as calls:
        for number in range(round(rate_per_s * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate_per_s - time.perf_counter()))
            calls.create_task(one())
    for error in errors[:3]:
        note(f"a request failed: {error}")
    return {"calls": len(took_ms), "errors": len(errors), **times(took_ms)}
