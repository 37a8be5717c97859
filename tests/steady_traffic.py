"""Requests to the model `m` of `bad_versions` that come whatever became of those before, and what became of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.integration.mesh_processes import added, question

REQUESTS_PER_S = 50.0


@dataclass(slots=True)
class Traffic:
    """Version N has to add N."""

    stub: Any
    per_s: float = REQUESTS_PER_S
    timeout_s: float = 1.0
    versions: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    # The version and what it added, where that is not the same number.
    wrong: list[tuple[str, float]] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)

    async def run(self, seconds: float = float("inf")) -> None:
        """Returns when all have been answered."""
        async with asyncio.TaskGroup() as tasks:
            started_s, number = time.monotonic(), 0
            while number < seconds * self.per_s:
                await asyncio.sleep(max(0.0, started_s + number / self.per_s - time.monotonic()))
                tasks.create_task(self._one())
                number += 1

    async def _one(self) -> None:
        started_s = time.monotonic()
        try:
            answer = await self.stub.ModelInfer(question("m"), timeout=self.timeout_s)
        except grpc.aio.AioRpcError as error:
            self.errors.append(f"{error.code().name}: {error.details()}")
            return
        self.took_s.append(time.monotonic() - started_s)
        self.versions[answer.model_version] += 1
        if added(answer) != float(answer.model_version):
            self.wrong.append((answer.model_version, added(answer)))

    def part(self, version: str) -> float:
        """Of all answers, those of one version."""
        return self.versions[version] / max(1, self.versions.total())


@asynccontextmanager
async def under_traffic(stub: Any, **options: float) -> AsyncIterator[Traffic]:
    """While the body runs."""
    found = Traffic(stub, **options)
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
