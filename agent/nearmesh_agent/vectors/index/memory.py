"""The index of one table: what searches, reads and lists rows, and keeps itself in order.

One thread applies writes, one maintains and saves, any number search. A state (view and lists) is replaced as a whole;
whoever took one goes on with it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearmesh.errors import InvalidInput
from nearmesh_agent.vectors.index import measuring, saved, tuning
from nearmesh_agent.vectors.index.exact import Best, joined
from nearmesh_agent.vectors.index.lists import Lists
from nearmesh_agent.vectors.index.measuring import exactly, prepared
from nearmesh_agent.vectors.index.slots import Slots, View
from nearmesh_agent.vectors.model import Found, Mask, Row, Table, Vector, Where, Write

# One search of so many is kept, to measure recall with.
_KEPT_SEARCHES = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _State:
    view: View
    lists: Lists | None


class MemoryIndex:
    """Implements `model.Index`."""

    def __init__(self, table: Table, view: View, lists: Lists | None = None) -> None:
        """See `opened` and `new`."""
        self._table = table
        self._state = _State(view, lists)
        self._saved: _State | None = None
        # Held by whoever replaces the state.
        self._writing = threading.Lock()
        # Held by whoever maintains or saves, which takes long.
        self._maintaining = threading.Lock()
        self._searches = 0
        self._recent: deque[Vector] = deque(maxlen=measuring.QUERIES)
        self._check_at = tuning.next_check(0)
        # Slots that could not be tidied away.
        self._left_dead = 0

    @classmethod
    def opened(cls, table: Table, folder: Path) -> MemoryIndex | None:
        """As it was saved in the folder, which is the table's own; None where there is nothing that can be used."""
        found = saved.read(table, folder)
        if found is None:
            return None
        index = cls(table, *found)
        index._saved = index._state
        return index

    @classmethod
    def new(cls, table: Table, folder: Path) -> MemoryIndex:
        """An empty one, in the place of whatever was in the folder. Raises OSError."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        saved.forget(folder)
        slots = Slots(table, folder, saved.next_epoch(folder))
        saved.forget_others(slots)
        return cls(table, View(slots, 0, np.empty(0, np.bool_), 0, 0, 0))

    # Writing.

    def reserve(self, rows: Sequence[Row]) -> None:
        """Raises OSError for a full disk; what has its place is applied without."""
        with self._writing:
            self._state.view.slots.reserve(rows)

    def apply(self, write: Write, position: int) -> None:
        """Rows first, then deletes. Raises InvalidInput for a vector of another dimension, OSError for a full disk."""
        with self._writing:
            state = self._state
            rows = {row.id: row for row in write.rows}
            for id_ in write.deleted:
                rows.pop(id_, None)
            old = (state.view.slot_of(id_) for id_ in {*rows, *write.deleted})
            killed = [slot for slot in old if slot is not None]
            state.view.slots.append(list(rows.values()))
            self._state = _State(state.view.after(killed, position), state.lists)

    # Reading.

    def search(
        self, vector: Vector, k: int, where: Where | None = None, *, exact: bool = False
    ) -> tuple[Sequence[Found], str]:
        """Raises InvalidInput for a vector of another dimension, or one with NaN."""
        if vector.shape != (self._table.dimension,) or not np.isfinite(vector).all():
            shape = list(vector.shape)
            raise InvalidInput(f"vector of shape {shape}: expected [{self._table.dimension}] finite values")
        if k < 1:
            raise InvalidInput(f"k is {k}; ask for at least 1")
        query, state = prepared(self._table.metric, vector), self._state
        selected, taken = _selected(state.view, where)
        best = None
        if not exact:
            if where is None:
                self._keep(query)
            best = _through_lists(state, query, k, selected, taken)
        way = "exact" if best is None else "index"
        if best is None:
            best = exactly(state.view, query, k, selected)
        ids = map(state.view.id_of, best.slots.tolist())
        return [Found(id_, score) for id_, score in zip(ids, best.scores.tolist(), strict=True)], way

    def _keep(self, query: Vector) -> None:
        self._searches += 1
        if self._searches % _KEPT_SEARCHES == 1:
            self._recent.append(query)

    def rows(self, ids: Iterable[str], *, vectors: bool = False) -> Sequence[Row]:
        """Those that are there, in the order asked for; their vectors are empty where none are asked for."""
        view = self._state.view
        slots = (view.slot_of(id_) for id_ in ids)
        return view.rows((slot for slot in slots if slot is not None), vectors=vectors)

    def select(self, where: Where | None, *, after: str = "", limit: int | None = None) -> Sequence[str]:
        """Ids that the filter takes, in order, from after `after` on."""
        view = self._state.view
        selected, taken = _selected(view, where)
        limit = taken if limit is None else min(limit, taken)
        takes = view.alive if selected is None else selected
        ids: list[str] = []
        for slots in view.slots.order.after(after, view.used):
            ids += map(view.id_of, slots[takes[slots]].tolist())
            if len(ids) >= limit:
                break
        return ids[:limit]

    def count(self, where: Where | None = None) -> int:
        """Rows that the filter takes."""
        return _selected(self._state.view, where)[1]

    # Keeping itself in order.

    def maintain(self) -> None:
        """Takes fresh rows into the lists, makes them anew where the table has grown, copies what lives where much is
        dead, measures recall; in a thread, for as long as it takes."""
        with self._maintaining:
            self._tidy()
            anew = self._take()
            self._tune()
            if anew and self._saved:
                # Nobody may write to the table for long, and a start would make them once more.
                self._save()

    def _tidy(self) -> None:
        state = self._state
        old = state.view
        if not tuning.tidies(old.live, old.dead - self._left_dead):
            return
        slots = Slots(self._table, old.slots.folder, saved.next_epoch(old.slots.folder))
        try:
            self._move(state, slots)
        except OSError as error:
            slots.discard()
            # There is no room for both; when more is dead, there may be.
            self._left_dead = old.dead
            _log.warning("what is dead in %s stays there for now: %s", old.slots.folder, error)
        else:
            old.slots.close()

    def _move(self, state: _State, slots: Slots) -> None:
        """What lives goes into these slots, and all go on with them."""
        old = state.view
        kept = np.flatnonzero(old.alive)
        slots.copy(old.slots, kept)
        view = View(slots, len(kept), np.ones(len(kept), np.bool_), len(kept), old.bytes, old.position)
        lists = state.lists.moved(view, kept) if state.lists else None
        with self._writing:
            now = self._state.view
            newer = np.flatnonzero(now.alive[old.used :]) + old.used
            slots.append(now.rows(newer.tolist(), vectors=True))
            alive = np.ones(len(slots.ids), np.bool_)
            alive[: len(kept)] = now.alive[kept]
            self._state = _State(View(slots, len(alive), alive, now.live, now.bytes, now.position), lists)
            self._left_dead = 0

    def _take(self) -> bool:
        """Whether the lists are new."""
        view, lists = self._state.view, self._state.lists
        if tuning.trains(view.live, lists.trained if lists else None, lists.unevenness if lists else 0.0):
            made = Lists.made_for(view)
            while made.take(self._state.view):
                pass
            made.tuned = self._tuned(made)
            with self._writing:
                self._state = _State(self._state.view, made)
            return True
        while lists and lists.take(self._state.view):
            pass
        return False

    def _tune(self) -> None:
        lists = self._state.lists
        if lists is None:
            return
        recall = -1.0
        if self._searches >= self._check_at:
            self._check_at = tuning.next_check(self._searches)
            recall = self._recall_of(list(self._recent))
        if lists.tuned.is_old(lists.indexed, recall):
            lists.tuned = self._tuned(lists)

    def _tuned(self, lists: Lists) -> tuning.Tuned:
        view = self._state.view
        real = [measuring.Query(vector) for vector in list(self._recent)]
        return measuring.tuned(lists, view, real + measuring.likely_queries(view, measuring.QUERIES - len(real)))

    def _recall_of(self, queries: Sequence[Vector]) -> float:
        """Of searches for all rows."""
        state = self._state
        k = tuning.MEASURED_K[0]
        truth = [exactly(state.view, query, k, None) for query in queries]
        found = [_through_lists(state, query, k, None, state.view.live) for query in queries]
        metric = self._table.metric
        return measuring.mean_recall(metric, [some or true for some, true in zip(found, truth, strict=True)], truth)

    def save(self) -> int:
        """Raises OSError; what was saved before stays then."""
        with self._maintaining:
            return self._save()

    def _save(self) -> int:
        with self._writing:
            state = self._state
            arenas = state.view.slots.arenas
            marks = {kind: (arena.size, arena.checksum) for kind, arena in arenas.items()}
        if state is not self._saved:
            saved.write(state.view, marks, state.lists)
            self._saved = state
        return state.view.position

    def close(self) -> None:
        """Gives its files back; what was not saved is in the journal."""
        with self._maintaining, self._writing:
            self._state.view.slots.close()

    # What it has.

    @property
    def position(self) -> int:
        return self._state.view.position

    @property
    def size(self) -> int:
        return self._state.view.live

    @property
    def bytes(self) -> int:
        """Of rows: their vectors, texts and fields."""
        return self._state.view.bytes

    @property
    def memory_bytes(self) -> int:
        """Of this process, roughly; vectors and texts are in files that the system keeps in memory as it sees fit."""
        state = self._state
        return state.view.slots.memory_bytes + (state.lists.memory_bytes if state.lists else 0)

    @property
    def fresh(self) -> int:
        state = self._state
        indexed = state.lists.indexed if state.lists else 0
        return int(np.count_nonzero(state.view.alive[indexed:]))


def _selected(view: View, where: Where | None) -> tuple[Mask | None, int]:
    """Which slots the filter takes, and how many; None: all that live."""
    if where is None:
        return None, view.live
    selected = where.mask(view) & view.alive
    return selected, int(np.count_nonzero(selected))


def _through_lists(state: _State, query: Vector, k: int, selected: Mask | None, taken: int) -> Best | None:
    """None where scoring all is as fast, or where the lists have too few."""
    view, lists = state.view, state.lists
    if lists is None:
        return None
    enough = lists.tuned.enough_for(k, lists.indexed, filtered=selected is not None)
    if tuning.scores_all(taken, enough):
        return None
    found, indexed = lists.search(query, k, enough, view, selected)
    fresh = exactly(view, query, k, selected, first=indexed)
    best = joined(view.slots.table.metric, [found, fresh], k)
    return best if len(best.slots) >= min(k, taken) else None
