"""`retrieve` of a step: which passages of the node's own collections a pipeline finds for its texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearmesh.config import Problem, refuse

# For each text; all of them go through the steps that follow.
MOST_PASSAGES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieve:
    """A step that finds passages: a text in, the best k of a collection out, on the node that answers.

    It reads `text`, BYTES [n], and writes `passages`, `ids` and `sources`, BYTES [n, k], and `scores`, FP32 [n, k],
    best first; where there are fewer, empty ones follow.
    """

    collection: str
    # Whose collection it is.
    namespace: str = "default"
    k: int = 5
    mode: Literal["hybrid", "dense", "lexical"] = "hybrid"
    # Which rows may be found, as `nearmesh vectors search --filter` has it.
    filter: str = ""
    # A model that scores text and passage together; empty: none.
    reranker: str = ""
    # How long it may take; after that another node is asked.
    timeout_ms: float = 2000.0
    # Passages that stand in for those of the collection while a version is proven, and wherever there is no node: the
    # warm-up expects what follows from them.
    sample: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        for key in ("collection", "namespace"):
            if not getattr(self, key):
                yield Problem((key,), f"retrieve.{key} is empty; name the collection's")
        if not 1 <= self.k <= MOST_PASSAGES:
            yield Problem(("k",), f"retrieve.k is {self.k}, expected 1 to {MOST_PASSAGES}")
        if self.timeout_ms <= 0:
            yield Problem(("timeout_ms",), f"retrieve.timeout_ms must be above 0, got {self.timeout_ms:g}")
        if not self.sample:
            said = "retrieve.sample is empty; give a passage or more, from which the warm-up's outputs follow"
            yield Problem(("sample",), said)
