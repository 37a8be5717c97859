"""Engines and packages over texts that need no weights: an embedder that hashes words, a reranker that counts them."""

from __future__ import annotations

import asyncio
import hashlib
import threading

import numpy as np
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.replica_config import ReplicaConfig

from nearmesh.package import Batching, Package
from tests.tiny_models import package, spec

DIMENSION = 16


def vector(text: str, dimension: int = DIMENSION) -> np.ndarray:
    """The sum of its words' directions, of length 1: texts that share words are near each other."""
    total = np.full(dimension, 1e-3, np.float32)
    for word in text.lower().split():
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
        total += np.random.default_rng(seed).normal(size=dimension).astype(np.float32)
    return (total / np.linalg.norm(total)).astype(np.float32)


def embedder_package(name: str = "embedder", *, dimension: int = DIMENSION) -> Package:
    return package(
        name,
        [spec("text", "BYTES", -1)],
        [spec("embedding", "FP32", -1, dimension)],
        batching=Batching(max_batch=32),
    )


def reranker_package(name: str = "reranker") -> Package:
    return package(
        name,
        [spec("query", "BYTES", -1), spec("text", "BYTES", -1)],
        [spec("score", "FP32", -1, 1)],
        batching=Batching(max_batch=32),
    )


class TextEngine:
    """Notes the rows of each call, and waits in it while it is not `open`."""

    name, variant, providers, instances = "texts", "fp32", ("CPUExecutionProvider",), 1
    variant_why, opened_s = "", None

    def __init__(self, answer, *, instances: int = 1) -> None:
        self._answer, self.instances = answer, instances
        self.calls: list[list[str]] = []
        self.open = threading.Event()
        self.open.set()
        self.running = threading.Semaphore(0)

    def infer(self, inputs, *, alone=False):
        self.calls.append([text.decode() for text in inputs["text"]])
        self.running.release()
        assert self.open.wait(20)
        return self._answer(inputs)

    def close(self) -> None:
        pass

    async def entered(self) -> None:
        assert await asyncio.to_thread(self.running.acquire, timeout=20)


def embedder(*, dimension: int = DIMENSION, instances: int = 1, scale: float = 1.0) -> TextEngine:
    def answer(inputs):
        return {"embedding": np.stack([scale * vector(text.decode(), dimension) for text in inputs["text"]])}

    return TextEngine(answer, instances=instances)


def reranker() -> TextEngine:
    def answer(inputs):
        pairs = zip(inputs["query"], inputs["text"], strict=True)
        return {"score": np.array([[len({*query.split()} & {*text.split()})] for query, text in pairs], np.float32)}

    return TextEngine(answer)


async def replica_of(engine: TextEngine, described: Package, *, digest: str = "sha256:1", **config) -> Replica:
    replica = Replica(described, digest, make=lambda: engine, config=ReplicaConfig(**config))
    await replica.activate()
    return replica
