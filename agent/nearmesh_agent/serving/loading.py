"""One load of an engine in a thread, which cannot be broken off: an engine that nobody waits for any more is freed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor

from nearmesh.errors import NotReady
from nearmesh_agent.engines.base import Engine
from nearmesh_agent.engines.rehearsal import rehearsal
from nearmesh_agent.serving import memory


class Loading:
    """`run` once, from an event loop."""

    def __init__(self, make: Callable[[], Engine], check: Callable[[Engine], None]) -> None:
        """Both block. Where `check` raises, the engine is freed."""
        self._make, self._check = make, check
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._left = False

    async def run(self, executor: Executor | None) -> Engine:
        """Raises what `make` and `check` raise. Cancelled, it leaves the engine to the thread, to be freed."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(executor, self._load)
        except asyncio.CancelledError:
            if engine := self._leave():
                # It was ready, and its caller cancelled, in the same moment.
                loop.run_in_executor(None, free, engine)
            raise

    def _load(self) -> Engine:
        with rehearsal():
            engine = self._make()
            try:
                self._check(engine)
            except BaseException:
                engine.close()
                raise
        with self._lock:
            if not self._left:
                self._engine = engine
                return engine
        free(engine)
        raise NotReady("nobody waits for this engine any more")

    def _leave(self) -> Engine | None:
        with self._lock:
            self._left = True
            return self._engine


def free(engine: Engine) -> None:
    """Closes it and hands its memory back to the system. Blocks; no call may be using it."""
    engine.close()
    memory.give_back()
