"""Texts to vectors by models that this node serves, through the queue that all requests go through.

A query counts as any request. Rows of an import go in short calls and behind every user's request, and leave an
instance free while queries come; those of a new generation go behind these, and always leave one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nearmesh.errors import DeadlineExceeded, EngineFailure, InvalidInput, Overloaded
from nearmesh.package import Package
from nearmesh_agent.serving.queue import DEFAULT_PRIORITY, LOWEST_PRIORITY
from nearmesh_agent.serving.replica import Replica

# Of one engine call with rows, filled up to the longest: a call may be what a user waits for. A thousand bytes are all
# that a small encoder reads of one text, 60 ms on one core; so long ones go one by one, which costs them nothing.
CALL_BYTES, CALL_ROWS = 1_000, 16
# For so long after a query another one may come.
QUIET_S = 2.0
# Of one text. Encoders read a few thousand characters, and tokenizers all of it.
MAX_TEXT_BYTES = 100_000
_RETRY_S = 0.05


class Urgency(IntEnum):
    """How soon it has to be, as a priority of the serving queue."""

    QUERY = DEFAULT_PRIORITY
    ROWS = LOWEST_PRIORITY - 2
    BACKGROUND = LOWEST_PRIORITY


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a package is asked for vectors."""

    input: str
    output: str
    # -1: known when it has answered.
    dimension: int


def shape_of(package: Package) -> Shape:
    """Raises InvalidInput for a model that is no embedder."""
    texts = [spec for spec in package.inputs if not spec.optional]
    vectors = [spec for spec in package.outputs if spec.dtype == "FP32" and len(spec.shape) == 2]
    fits = len(texts) == 1 and texts[0].dtype == "BYTES" and len(texts[0].shape) == 1 and len(vectors) == 1
    if not fits or package.decoupled or package.sequence:
        raise InvalidInput(
            f"model {package.name!r} is no embedder: it needs one input, BYTES [-1] for texts, and one output "
            "FP32 [-1, DIMENSION], as models/sentence-encoder has"
        )
    return Shape(input=texts[0].name, output=vectors[0].name, dimension=vectors[0].shape[1])


def check_text(text: str, what: str = "the text") -> None:
    """Raises InvalidInput for one that has no vector."""
    if not text.strip():
        raise InvalidInput(f"{what} is empty; expected words")
    if (size := len(text.encode())) > MAX_TEXT_BYTES:
        raise InvalidInput(f"{what} has {size} bytes, expected {MAX_TEXT_BYTES} at most; send it in parts")


class Embedding:
    """Of all embedders of one node; belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By digest, what is under way of rows.
        self._turns: dict[str, _Turns] = {}

    async def embed(
        self, replica: Replica, texts: Sequence[str], *, urgency: Urgency, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """Vectors, [texts, dimension]. Raises InvalidInput, EngineFailure, and what the replica raises."""
        shape = shape_of(replica.package)
        for number, text in enumerate(texts):
            check_text(text, f"text {number}" if len(texts) > 1 else "the text")
        if not texts:
            return np.zeros((0, max(0, shape.dimension)), np.float32)
        turns = self._turns.setdefault(replica.digest, _Turns(self._clock))
        if urgency is Urgency.QUERY:
            turns.asked_s = self._clock()
            return await _ask(replica, shape, texts, urgency, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await _rows(replica, shape, texts, urgency, turns)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{len(texts)} texts had no vectors by {replica.name!r} within {timeout_s:.1f} s; send fewer at a time"
            ) from None


class _Turns:
    """Calls with rows of one embedder: how many may run at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running = 0
        self._over = asyncio.Condition()
        # When a query came last.
        self.asked_s = -math.inf

    @asynccontextmanager
    async def turn(self, instances: int, urgency: Urgency) -> AsyncIterator[None]:
        async with self._over:
            await self._over.wait_for(lambda: self._running < self._most(instances, urgency))
            self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            async with self._over:
                self._over.notify_all()

    def _most(self, instances: int, urgency: Urgency) -> int:
        quiet = urgency is not Urgency.BACKGROUND and self._clock() - self.asked_s > QUIET_S
        return instances if quiet else max(1, instances - 1)


async def _rows(
    replica: Replica, shape: Shape, texts: Sequence[str], urgency: Urgency, turns: _Turns
) -> NDArray[np.float32]:
    found: dict[int, NDArray[np.float32]] = {}

    async def one(part: Sequence[int]) -> None:
        async with turns.turn(max(1, replica.instances), urgency):
            vectors = await _patient(replica, shape, [texts[number] for number in part], urgency)
        found.update(zip(part, vectors, strict=True))

    tasks = [asyncio.create_task(one(part)) for part in parts(texts)]
    try:
        await asyncio.gather(*tasks)
    finally:
        # After the first that failed, nobody waits for the others.
        for task in tasks:
            task.cancel()
    return np.stack([found[number] for number in range(len(texts))])


def parts(texts: Sequence[str]) -> list[list[int]]:
    """Which texts share a call: those of one length, so that none is filled up, and no more than a short call takes."""
    sizes = [min(CALL_BYTES, len(text.encode())) for text in texts]
    found: list[list[int]] = [[]]
    for number in sorted(range(len(texts)), key=lambda number: sizes[number]):
        rows = len(found[-1]) + 1
        if found[-1] and (rows > CALL_ROWS or rows * sizes[number] > CALL_BYTES):
            found.append([])
        found[-1].append(number)
    return found


async def _patient(replica: Replica, shape: Shape, texts: Sequence[str], urgency: Urgency) -> NDArray[np.float32]:
    """Rows can wait where users' requests have filled the queue, or taken their place in it."""
    while True:
        try:
            return await _ask(replica, shape, texts, urgency, None)
        except Overloaded:
            await asyncio.sleep(_RETRY_S)


async def _ask(
    replica: Replica, shape: Shape, texts: Sequence[str], urgency: Urgency, timeout_s: float | None
) -> NDArray[np.float32]:
    given = np.empty(len(texts), object)
    given[:] = [text.encode() for text in texts]
    answer = await replica.infer({shape.input: given}, timeout_s=timeout_s, priority=int(urgency))
    return checked(replica.name, answer.outputs[shape.output], len(texts))


def checked(model: str, vectors: np.ndarray, rows: int) -> NDArray[np.float32]:
    """Raises EngineFailure for what no index may get."""
    if vectors.ndim != 2 or vectors.shape[0] != rows or not np.isfinite(vectors).all():
        shown = f"{list(vectors.shape)}" + ("" if np.isfinite(vectors).all() else ", not all finite")
        raise EngineFailure(f"embedder {model!r} gave {shown} for {rows} texts, expected finite [{rows}, DIMENSION]")
    if (np.abs(vectors).max(axis=1) == 0).any():
        raise EngineFailure(f"embedder {model!r} gave a vector of zeros, which is near to nothing")
    return np.ascontiguousarray(vectors, np.float32)
