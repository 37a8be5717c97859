"""Whatever bytes come as a request: a status with a reason, and the next answer is right."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np

from nearmesh import tensors
from tests import tiny_models
from tests.faults import fuzz
from tests.inference_server import load, serving

SEED = 20_240_611
COUNT = 500


ECHOES = ("BYTES", "FP16", "BOOL", "INT64")


# Mutated numbers are infinite or none at all, which NumPy would warn of.
@np.errstate(all="ignore")
def add(arrays):
    right = arrays.get("right", np.zeros_like(arrays["left"]))
    return {"total": arrays["left"] + right, "less": arrays["left"] - right}


@np.errstate(all="ignore")
def accumulate(arrays):
    after = arrays["x"] + arrays.get("before", np.zeros(1, np.float32))
    return {"sum": after, "after": after}


def echo(arrays):
    return {"y": arrays["x"]}


def golden(model, compute, **arrays):
    return fuzz.Golden(tensors.encode_request(model, arrays), compute(arrays), compute)


def goldens():
    """One request with its answer for each of the tiny models."""
    left, right = np.arange(8, dtype=np.float32).reshape(2, 4), np.full((2, 4), 0.5, np.float32)
    echoes = [golden(f"identity-{dtype.lower()}", echo, x=tiny_models.SAMPLES[dtype]) for dtype in ECHOES]
    return [
        golden("adder", add, left=left, right=right),
        golden("accumulator", accumulate, x=np.ones(1, np.float32)),
        *echoes,
    ]


async def fuzzed(folder, count, seed):
    """The result of a run against a server with the tiny models."""
    packages = {"adder": tiny_models.adder(folder / "adder"), "sum": tiny_models.accumulator(folder / "sum")}
    packages |= {dtype: tiny_models.identity(folder / dtype, dtype) for dtype in ECHOES}
    replicas = [await load(folder / name, package) for name, package in packages.items()]
    async with serving(replicas, max_message_bytes=1_000_000) as running:
        return await asyncio.to_thread(fuzz.run, lambda: grpc.insecure_channel(running.address), count, seed, goldens())


async def test_mutated_requests(tmp_path, caplog):
    result = await fuzzed(tmp_path, COUNT, SEED)
    assert result["sent"] == COUNT
    assert result["golden"] == 5 * 6
    assert result["wrong"] == []
    assert result["faults"] == []
    # The mutations reach past the parser, and not all of them are harmless.
    assert result["statuses"]["OK"] < COUNT / 2 < result["sent"] - result["statuses"]["NOT_FOUND"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_the_same_seed_makes_the_same_requests():
    first, again, other = (list(fuzz.mutations(200, seed, goldens())) for seed in (1, 1, 2))
    assert first == again
    assert first != other
