"""Takes what was acknowledged from the journal into the store, and has the journal forget what is safe elsewhere.

A thread of its own, behind everything else. A failure of the store loses nothing: writing the same again changes
nothing. Lite may have lost what it had not flushed, and gets it again.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nearmesh.errors import MeshError, NotFound
from nearmesh_agent.vectors.model import Store, Write
from nearmesh_agent.vectors.store.journal import Journal

log = logging.getLogger(__name__)

# Handed to the store at once: many small writes become one, and a large one is not held up by memory.
BATCH_ROWS = 2_000
# Flushing makes a file: seldom enough that they are few, often enough that a restart has little to take over again.
FLUSH_ROWS = 50_000
FLUSH_S = 30.0
_AGAIN_S, _AGAIN_AT_MOST_S = 1.0, 30.0
# How often it looks whether a flush is due while nothing is written.
_LOOK_S = 1.0
# A batch, or a flush of Lite, is done by then.
_STOP_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When what was written to the store is flushed."""

    rows: int = FLUSH_ROWS
    after_s: float = FLUSH_S

    def due(self, rows: int, since_s: float | None, now_s: float) -> bool:
        """`since_s`: when the first of what is not flushed was written; None: there is nothing."""
        return since_s is not None and (rows >= self.rows or now_s - since_s >= self.after_s)


class Applier:
    """Between one journal and one store. `known` says whether a table is still there: what is for another is passed
    over. `saved` is up to where every saved index knows: no more is forgotten. `settle_s` is the store's."""

    def __init__(
        self,
        journal: Journal,
        store: Store,
        *,
        known: Callable[[str], bool],
        saved: Callable[[], int],
        settle_s: float = 0.0,
        pace: Pace = Pace(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal, self._store = journal, store
        self._known, self._saved, self._settle_s, self._pace, self._clock = known, saved, settle_s, pace, clock
        # What comes before the journal's first entry is in the store, on its disk.
        self.applied = self.durable = self._visible = journal.first - 1
        # When what was applied last becomes visible to the engine's own searches.
        self._settling: deque[tuple[float, int]] = deque()
        self._looking = threading.Lock()
        # Why nothing goes on at the moment; empty: it goes on.
        self.failure = ""
        self._rows = 0
        self._since_s: float | None = None
        # Held while the store is used.
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vectors-applier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What is not applied stays in the journal; a call to a store that hangs is left behind. Safe to repeat."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    @property
    def visible(self) -> int:
        """Up to where the engine's own searches see what was written, and go on to; what comes after is to be searched
        beside."""
        if self._loses:
            return self.durable
        # Searches ask in many threads.
        with self._looking:
            while self._settling and self._settling[0][0] <= self._clock():
                self._visible = self._settling.popleft()[1]
            return self._visible

    @property
    def lag(self) -> int:
        """Entries that the store has not taken."""
        return self._journal.position - self.applied

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The store changes no more inside, and has on its disk what it has; the journal goes on."""
        with self._turn:
            try:
                self._flush()
            except MeshError:
                self._begin_again()
                raise
            yield

    def use(self, store: Store, settle_s: float) -> None:
        """Another store, that has all that this one has; only inside `paused`."""
        with self._looking:
            self._store, self._settle_s = store, settle_s
            self._settling.clear()
            self._visible = self.durable

    def flush(self) -> None:
        """Takes over all that is in the journal by now, and flushes. Raises what the store raises."""
        target = self._journal.position
        with self._turn:
            try:
                while self.applied < target:
                    self._apply()
                self._flush()
            except MeshError:
                self._begin_again()
                raise

    def _run(self) -> None:
        again_s = _AGAIN_S
        while not self._stopping.is_set():
            try:
                self._step()
            except Exception as error:  # noqa: BLE001  # a library's bug must not end who empties the journal, unseen
                self._fail(error)
                self._stopping.wait(again_s)
                again_s = min(2 * again_s, _AGAIN_AT_MOST_S)
                continue
            if self.failure:
                log.info("the store takes writes again applied=%d", self.applied)
            self.failure, again_s = "", _AGAIN_S

    def _step(self) -> None:
        """Waits for something to do, for a second at most, and does some of it."""
        more = self._journal.wait(self.applied, _LOOK_S)
        with self._turn:
            if more and not self._stopping.is_set():
                self._apply()
            if self._pace.due(self._rows, self._since_s, self._clock()):
                self._flush()
            elif not more:
                self._forget()

    def _fail(self, error: Exception) -> None:
        expected = isinstance(error, MeshError | OSError)
        why = str(error) if expected else repr(error)
        if why != self.failure:
            log.warning(
                "the store takes no writes, the journal keeps them lag=%d %s",
                self.lag,
                why,
                exc_info=None if expected else error,
            )
        self.failure = why
        with self._turn:
            self._begin_again()

    @property
    def _loses(self) -> bool:
        """Whether what it was given and has not flushed may be gone. A server keeps it, in a log of its own."""
        return math.isinf(self._settle_s)

    def _begin_again(self) -> None:
        """Behind the last flush; not where it is known to be there: to write it again would bring back old states,
        until all of it is written."""
        if self._loses:
            self.applied, self._rows, self._since_s = self.durable, 0, None

    def _apply(self) -> None:
        """Some of what comes next."""
        writes: list[Write] = []
        rows, reached = 0, self.applied
        for position, write in self._journal.after(self.applied):
            reached = position
            if self._known(write.table):
                writes.append(write)
                rows += len(write.rows) + len(write.deleted)
            if rows >= BATCH_ROWS:
                break
        try:
            self._store.write(writes)
        except NotFound:
            if all(self._known(write.table) for write in writes):
                raise
            # Dropped just now: the next time it is passed over.
            return
        self.applied = reached
        now_s = self._clock()
        if not self._loses:
            self._settling.append((now_s + self._settle_s, reached))
            # Where nobody asks, they would become ever more.
            _ = self.visible
        self._rows += rows
        self._since_s = now_s if self._since_s is None else self._since_s

    def _flush(self) -> None:
        self._store.flush()
        self.durable, self._rows, self._since_s = self.applied, 0, None
        self._forget()

    def _forget(self) -> None:
        """What is on the store's disk and in every saved index."""
        self._journal.forget(min(self.durable, self._saved()))
