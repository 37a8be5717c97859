"""Passages in the order of a model that reads question and passage together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nearmesh.errors import EngineFailure, InvalidInput
from nearmesh.package import Package
from nearmesh_agent.serving.replica import Replica

# Pairs in one engine call, and in one question: of 200 words each a call of a small model takes half a second.
ROWS = 8
MOST_PAIRS = 200
# Of a passage; rerankers read a few hundred words.
MOST_CHARACTERS = 8000
# With no number asked for, so many times k are scored.
TIMES_K = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a package is asked: two inputs of texts, one score for each pair."""

    query: str
    text: str
    output: str


def shape_of(package: Package) -> Shape:
    """Raises InvalidInput for a model that is no reranker."""
    names = {spec.name for spec in package.inputs if spec.dtype == "BYTES" and len(spec.shape) == 1}
    needed = {spec.name for spec in package.inputs if not spec.optional}
    scores = [spec for spec in package.outputs if spec.dtype == "FP32" and _one_a_row(spec.shape)]
    if not needed <= {"query", "text"} <= names or len(scores) != 1 or package.decoupled or package.sequence:
        raise InvalidInput(
            f"model {package.name!r} is no reranker: it needs two inputs, `query` and `text`, both BYTES [-1], and one "
            "output FP32 [-1] or [-1, 1], higher for a passage that answers better"
        )
    return Shape(query="query", text="text", output=scores[0].name)


def how_many(k: int, asked: int) -> int:
    """Passages to score for an answer of k. Raises InvalidInput."""
    if asked and asked < k:
        raise InvalidInput(f"rerank_k is {asked}, expected k ({k}) or more, or 0 for {TIMES_K} times k")
    if asked > MOST_PAIRS or k > MOST_PAIRS:
        raise InvalidInput(f"k and rerank_k are {k} and {asked}, expected {MOST_PAIRS} at most with a reranker")
    return asked or min(TIMES_K * k, MOST_PAIRS)


async def score(replica: Replica, query: str, texts: Sequence[str], *, timeout_s: float | None) -> list[float]:
    """Of each passage. Raises InvalidInput, EngineFailure, and what the replica raises."""
    shape = shape_of(replica.package)
    found: list[float] = []
    for start in range(0, len(texts), ROWS):
        part = texts[start : start + ROWS]
        given = {shape.query: _texts([query] * len(part)), shape.text: _texts(part)}
        answer = await replica.infer(given, timeout_s=timeout_s)
        found += _checked(replica.name, answer.outputs[shape.output], len(part))
    return found


def _one_a_row(shape: Sequence[int]) -> bool:
    return len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)


def _texts(texts: Sequence[str]) -> np.ndarray:
    found = np.empty(len(texts), object)
    found[:] = [text[:MOST_CHARACTERS].encode() for text in texts]
    return found


def _checked(model: str, scores: np.ndarray, rows: int) -> list[float]:
    if scores.size != rows or not np.isfinite(scores).all():
        raise EngineFailure(f"reranker {model!r} gave {list(scores.shape)} for {rows} pairs, expected finite [{rows}]")
    return [float(each) for each in scores.reshape(rows)]
