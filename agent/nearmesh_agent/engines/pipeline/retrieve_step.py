"""Passages as a step of a pipeline: texts in, the best of a collection out, from wherever the node keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nearmesh.errors import EngineFailure, InvalidInput, MeshError, NotReady
from nearmesh.package import Retrieve
from nearmesh_agent.engines.base import Array
from nearmesh_agent.engines.rehearsal import rehearsing

# Texts of warm-ups that are known again.
_REHEARSED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPassage:
    """One passage, as a pipeline has it."""

    text: str
    id: str = ""
    source: str = ""
    score: float = 0.0


class Retriever(Protocol):
    """Finds passages; called from engine threads, never from the event loop, which it waits for."""

    def check(self, asked: Retrieve) -> None:
        """Raises PackageError where it could never be answered."""
        ...

    def __call__(self, asked: Retrieve, texts: Sequence[str]) -> Sequence[Sequence[FoundPassage]]:
        """Of each text the best first, k at most. Blocks for `timeout_ms` at most. Raises MeshError."""
        ...


class RetrieveStep:
    """One step. While a version is proven, and without a retriever, it gives its sample."""

    inputs: tuple[str, ...] = ("text",)
    optional: tuple[str, ...] = ()
    outputs: tuple[str, ...] | None = ("passages", "ids", "sources", "scores")

    def __init__(self, name: str, asked: Retrieve, retriever: Retriever | None) -> None:
        """Raises PackageError."""
        if retriever is not None:
            retriever.check(asked)
        self._name, self._asked, self._retriever = name, asked, retriever
        # The very objects that warm-ups brought: probes bring them again, and are about the engine alone.
        self._rehearsed: list[bytes] = []

    def place(self, name: str) -> str:
        """Where in the package an input is asked for, for an error's message."""
        return f"input {name!r} of what it retrieves"

    def run(self, arrays: Mapping[str, Array], *, alone: bool = False) -> dict[str, Array]:
        """Raises InvalidInput, EngineFailure, and NotReady where the collection cannot be asked on this node now."""
        given = arrays["text"]
        texts = _texts(given)
        if rehearsing():
            self._rehearsed = [*given, *self._rehearsed][:_REHEARSED]
        if self._retriever is None or rehearsing() or self._is_probe(given):
            found: Sequence[Sequence[FoundPassage]] = [self._sample()] * len(texts)
        else:
            found = self._ask(self._retriever, texts)
        return _arrays(found, self._asked.k)

    def _is_probe(self, given: Array) -> bool:
        """Not by what it says, which anybody may say."""
        return len(given) > 0 and all(any(item is known for known in self._rehearsed) for item in given)

    def _sample(self) -> list[FoundPassage]:
        given = self._asked.sample[: self._asked.k]
        return [
            FoundPassage(text=text, id=f"sample-{number}", source="sample", score=1 / number)
            for number, text in enumerate(given, 1)
        ]

    def _ask(self, retriever: Retriever, texts: Sequence[str]) -> Sequence[Sequence[FoundPassage]]:
        try:
            return retriever(self._asked, texts)
        except InvalidInput:
            raise
        except MeshError as error:
            # Whatever it is, it is not this request's fault, and another node may have what is missing here.
            raise NotReady(
                f"step {self._name!r} cannot retrieve from {self._asked.collection!r} on this node: {error.message}; "
                "another node may serve it"
            ) from None


def _texts(array: Array) -> list[str]:
    if array.dtype != object or array.ndim != 1:
        raise EngineFailure(f"`text` came as {array.dtype} {list(array.shape)}, expected BYTES [-1]")
    try:
        return [bytes(item).decode() for item in array]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"a text is not UTF-8: {error}") from None


def _arrays(found: Sequence[Sequence[FoundPassage]], k: int) -> dict[str, Array]:
    """Of k passages for each text, empty ones last."""
    passages, ids, sources = (np.full((len(found), k), b"", dtype=object) for _ in range(3))
    scores = np.zeros((len(found), k), np.float32)
    for row, best in enumerate(found):
        for place, each in enumerate(best[:k]):
            passages[row, place] = each.text.encode()
            ids[row, place], sources[row, place] = each.id.encode(), each.source.encode()
            scores[row, place] = each.score
    return {"passages": passages, "ids": ids, "sources": sources, "scores": scores}
