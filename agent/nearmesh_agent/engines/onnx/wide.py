"""A second session for lone requests, with all cores: made aside, and kept only if it proves to be faster.

Two single-thread calls at a time beat one call of two threads in throughput, and lose to it in latency as long as
nobody else asks. Whether they lose by enough depends on the graph, so the first lone requests measure it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from nearmesh.errors import EngineFailure, MeshError
from nearmesh_agent.engines.base import Array
from nearmesh_agent.engines.onnx.session import Session

log = logging.getLogger(__name__)

# It costs the weights' memory once more and some processor time in each call; a small gain is not worth them.
WORTH = 1.1
# Measured calls of each session. The fastest of them counts: whatever else the machine does only slows a call down, and
# a machine that is busy now need not be later.
CALLS = 5
# Begins as the names of all threads that load, which a process does not wait for when it ends.
THREAD = "engine-load-wide"


class Wide:
    """Runs every call of an engine: lone ones on the wide session once it has proven itself, all others on `narrow`.

    Nothing is made before the first lone call, which is not delayed by it. Calls may come from several threads; they
    take no lock, but for the few that are measured.
    """

    def __init__(
        self, narrow: Session, open_wide: Callable[[], Session], *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._narrow = narrow
        self._open_wide = open_wide
        self._clock = clock
        self._kept: Session | None = None
        self._trial: _Trial | None = None
        self._begun = False
        self._closed = False
        # For what happens once: the beginning, the end of the trial, `close`.
        self._lock = threading.Lock()
        self.detail = "not needed so far"

    @property
    def sessions(self) -> int:
        """Sessions that hold weights in memory besides the narrow one."""
        return int(self._kept is not None or self._trial is not None)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array], *, alone: bool) -> dict[str, Array]:
        """As `Session.run`."""
        kept = self._kept
        if kept is not None and alone:
            return self._run_wide(kept, outputs, inputs)
        trial = self._trial
        if trial is not None:
            return self._try(trial, outputs, inputs, alone=alone)
        if alone and not self._begun:
            self._begin()
        return self._narrow.run(outputs, inputs)

    def _run_wide(self, kept: Session, outputs: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
        """With the narrow one to fall back on: two sessions may need more memory than one."""
        try:
            return kept.run(outputs, inputs)
        except EngineFailure as error:
            self._kept = None
            self.detail = f"given up: {error.message}"
            log.warning("the second session for lone requests failed and is given up: %s", error.message)
        return self._narrow.run(outputs, inputs)

    def close(self) -> None:
        """Gives back the second session's memory; one that is being made is dropped when it is. Safe to repeat."""
        with self._lock:
            self._closed = self._begun = True
            self._kept = self._trial = None

    def _begin(self) -> None:
        with self._lock:
            if self._begun:
                return
            self._begun = True
        self.detail = "loading"
        # Not a daemon as the engine thread that starts it is: cut off inside ONNX Runtime, it would abort the process.
        threading.Thread(target=self._load, name=THREAD, daemon=False).start()

    def _load(self) -> None:
        try:
            wide = self._open_wide()
        except MeshError as error:
            self.detail = f"not loaded: {error.message}"
            log.warning("no second session for lone requests: %s", error.message)
            return
        with self._lock:
            if not self._closed:
                self.detail = "being measured"
                self._trial = _Trial(self._narrow, wide)

    def _try(
        self, trial: _Trial, outputs: Sequence[str], inputs: Mapping[str, Array], *, alone: bool
    ) -> dict[str, Array]:
        begun = next(trial.calls)
        # A second measured call at the same time would disturb the first.
        if not alone or not trial.lock.acquire(blocking=False):
            return self._narrow.run(outputs, inputs)
        try:
            session = trial.turn()
            started = self._clock()
            found = session.run(outputs, inputs)
            took_s = self._clock() - started
            # One that was joined by others says nothing about a lone call.
            if next(trial.calls) == begun + 1 and trial.add(session, took_s):
                self._decide(trial)
            return found
        finally:
            trial.lock.release()

    def _decide(self, trial: _Trial) -> None:
        gain = trial.gain()
        with self._lock:
            if self._trial is not trial:
                return
            if gain >= WORTH:
                self._kept = trial.wide
            self._trial = None
        self.detail = f"{gain:.2f} times as fast" if gain >= WORTH else f"not kept, {gain:.2f} times as fast"
        log.info("a second session for lone requests is %s", self.detail)


class _Trial:
    """Both sessions in turn. What is added belongs to the holder of `lock`."""

    def __init__(self, narrow: Session, wide: Session) -> None:
        self.wide = wide
        self.lock = threading.Lock()
        # Each call takes a number, in one step of the interpreter's; a gap shows that another came between.
        self.calls = itertools.count()
        self._narrow = narrow
        self._taken_s: dict[Session, list[float]] = {narrow: [], wide: []}

    def turn(self) -> Session:
        narrow, wide = self._taken_s[self._narrow], self._taken_s[self.wide]
        return self._narrow if len(narrow) <= len(wide) else self.wide

    def add(self, session: Session, took_s: float) -> bool:
        """True when there are enough of both."""
        self._taken_s[session].append(took_s)
        return all(len(taken) >= CALLS for taken in self._taken_s.values())

    def gain(self) -> float:
        """How many times as fast the wide session is."""
        narrow_s, wide_s = (min(self._taken_s[which]) for which in (self._narrow, self.wide))
        return narrow_s / max(wide_s, 1e-9)
