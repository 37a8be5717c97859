"""Inverted lists over a table's first slots: a query looks into the lists nearest to it, and no further than it must.

How far is told in rows: lists are looked into, nearest first, until they hold `enough` of those that may be found. With
a filter that takes few rows it thus looks into more lists, and where those near the query hold none, it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearmesh_agent.vectors.index.exact import Best, best, scores
from nearmesh_agent.vectors.index.gate import Gate
from nearmesh_agent.vectors.index.growing import Growing
from nearmesh_agent.vectors.index.library import faiss, pointer
from nearmesh_agent.vectors.index.slots import View
from nearmesh_agent.vectors.index.tuning import Trained, Tuned, list_count
from nearmesh_agent.vectors.model import Mask, Metric, Table, Vector

# Lists are added to in pieces: searches wait for one of them, which takes a millisecond or two.
_ADDED_ROWS = 1024
# A few passes find lists that are good enough; more of them, or more rows for each, change little.
_TRAINING_PASSES = 8
_TRAINING_ROWS_PER_LIST = 64
# Codes are rounded to 8 bits: a quarter of the memory, and of what a search reads. So that rounding costs no result,
# that many times k are taken from the lists and scored anew by their vectors.
_MORE, _MORE_AT_LEAST = 3, 32
# So that all lists are the same for the same rows.
_SEED = 1


class Lists:
    """Trained once; takes more slots in; searched by many."""

    def __init__(self, table: Table, index: Any) -> None:
        """`index`: faiss' own, trained, without rows."""
        self._table = table
        self._index = index
        self._empty: NDArray[np.uint8] = faiss().serialize_index(index)
        self._gate = Gate()
        # The list of each slot.
        self._assigned = Growing(np.int32)
        self._sizes = np.zeros(index.nlist, np.int64)
        self._centroids = index.quantizer.reconstruct_n(0, index.nlist)
        self.trained = Trained(0, 1.0)
        # Replaced as a whole when it is measured anew.
        self.tuned = Tuned()

    @classmethod
    def made_for(cls, view: View) -> Lists:
        """Trained by what lives of a table now, and filled with it."""
        table, count = view.slots.table, list_count(view.live)
        cosine_or_ip = table.metric is not Metric.L2
        metric = faiss().METRIC_INNER_PRODUCT if cosine_or_ip else faiss().METRIC_L2
        index = faiss().index_factory(table.dimension, f"IVF{count},SQ8", metric)
        index.cp.niter, index.cp.max_points_per_centroid, index.cp.seed = (
            _TRAINING_PASSES,
            _TRAINING_ROWS_PER_LIST,
            _SEED,
        )
        live = np.flatnonzero(view.alive)
        wanted = min(len(live), count * _TRAINING_ROWS_PER_LIST)
        chosen = np.sort(np.random.default_rng(_SEED).choice(live, wanted, replace=False))
        index.train(_fit(view, chosen))
        lists = cls(table, index)
        while lists.take(view):
            pass
        lists.trained = Trained(view.live, lists.unevenness)
        return lists

    @classmethod
    def restored(cls, view: View, arrays: Mapping[str, NDArray[Any]], trained: Trained, tuned: Tuned) -> Lists:
        """As it was saved; the rows come from the view's vectors."""
        lists = cls(view.slots.table, faiss().deserialize_index(arrays["empty"]))
        lists.trained, lists.tuned = trained, tuned
        assigned = arrays["assigned"]
        for start in range(0, len(assigned), _ADDED_ROWS):
            lists._add(view, start, assigned[start : start + _ADDED_ROWS])
        return lists

    def arrays(self, count: int) -> Mapping[str, NDArray[Any]]:
        """What it is saved as, with no more than the first `count` slots; their vectors lie in the arena."""
        return {"empty": self._empty, "assigned": self._assigned.first(min(count, self.indexed))}

    @property
    def indexed(self) -> int:
        """As many slots are in the lists, dead ones too."""
        return len(self._assigned)

    @property
    def unevenness(self) -> float:
        """How much longer a list is that a search meets than the mean of all; 1: all are equally long."""
        sizes = self._sizes.astype(np.float64)
        return float(len(sizes) * (sizes**2).sum() / max(sizes.sum(), 1.0) ** 2)

    @property
    def memory_bytes(self) -> int:
        # With each code an id of faiss, and the number of its list.
        row_bytes = int(self._index.code_size) + 12
        return self.indexed * row_bytes + int(self._centroids.nbytes)

    def take(self, view: View) -> bool:
        """The next of the view's slots that are not in the lists; whether there are more."""
        start = self.indexed
        end = min(view.used, start + _ADDED_ROWS)
        if end > start:
            vectors = _fit(view, np.arange(start, end))
            self._add(view, start, self._index.quantizer.assign(vectors, 1).reshape(-1).astype(np.int32), vectors)
        return end < view.used

    def moved(self, view: View, slots: NDArray[np.int64]) -> Lists:
        """The same lists over a view that holds some of the slots, in this order."""
        taken = {"empty": self._empty, "assigned": self._assigned.first(self.indexed)[slots[slots < self.indexed]]}
        return Lists.restored(view, taken, self.trained, self.tuned)

    def _add(
        self, view: View, start: int, assigned: NDArray[np.int32], vectors: NDArray[np.float32] | None = None
    ) -> None:
        slots = np.arange(start, start + len(assigned))
        vectors = _fit(view, slots) if vectors is None else vectors
        numbers = assigned.astype(np.int64)
        with self._gate.writing():
            self._index.add_core(len(slots), pointer(vectors), pointer(slots), pointer(numbers))
            # The quantizer is told of nothing, so the index counts for itself.
            self._sizes = self._sizes + np.bincount(numbers, minlength=len(self._sizes))
            self._assigned.extend(assigned)

    def search(self, query: Vector, k: int, enough: int, view: View, selected: Mask | None) -> tuple[Best, int]:
        """Of the slots that are in the lists, and how many those are; `selected` (with a filter) are alive."""
        nearness = self._nearness(query)
        order = np.argsort(nearness if self._table.metric is Metric.L2 else -nearness)
        if selected is None and view.dead:
            selected = view.alive
        with self._gate.reading():
            indexed = self.indexed
            if selected is None and indexed > view.used:
                selected = view.alive
            probed = order[: self._probes(order, enough, view, selected)]
            slots = self._candidates(query, max(k * _MORE, _MORE_AT_LEAST), probed, nearness[probed], selected)
        found = scores(self._table.metric, query, view.vectors, view.scales, slots)
        return best(self._table.metric, slots, found, k), min(indexed, view.used)

    def _nearness(self, query: Vector) -> NDArray[np.float32]:
        """Of all lists' centroids, as faiss has it; not by NumPy, whose library may call threads of its own."""
        found = np.empty(len(self._centroids), np.float32)
        of = faiss().fvec_L2sqr_ny if self._table.metric is Metric.L2 else faiss().fvec_inner_products_ny
        of(pointer(found), pointer(query), pointer(self._centroids), self._table.dimension, len(found))
        return found

    def _probes(self, order: NDArray[np.int64], enough: int, view: View, selected: Mask | None) -> int:
        """How many lists hold enough."""
        sizes = self._sizes
        if selected is not None and selected is not view.alive:
            both = min(self.indexed, view.used)
            sizes = np.bincount(self._assigned.first(both)[selected[:both]], minlength=len(sizes))
        return min(int(np.searchsorted(np.cumsum(sizes[order]), enough)) + 1, len(order))

    def _candidates(
        self, query: Vector, k: int, probed: NDArray[np.int64], nearness: NDArray[np.float32], selected: Mask | None
    ) -> NDArray[np.int64]:
        parameters = faiss().SearchParametersIVF(nprobe=len(probed))
        if selected is not None:
            bits = np.packbits(selected, bitorder="little")
            selector = faiss().IDSelectorBitmap(len(bits), pointer(bits))
            parameters.sel = selector
        lists, near = np.ascontiguousarray(probed, np.int64), np.ascontiguousarray(nearness)
        distances, slots = np.empty(k, np.float32), np.empty(k, np.int64)
        self._index.search_preassigned_c(
            1, pointer(query), k, pointer(lists), pointer(near), pointer(distances), pointer(slots), False, parameters
        )
        return slots[slots >= 0]


def _fit(view: View, slots: NDArray[np.int64]) -> NDArray[np.float32]:
    """Vectors as the lists take them: for the cosine, of length 1."""
    vectors = view.vectors[slots]
    return vectors * view.scales[slots, None] if view.slots.table.metric is Metric.COSINE else vectors
