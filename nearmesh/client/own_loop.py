"""An event loop in a thread of its own, on which a client works for callers that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from nearmesh.client.tasks import end
from nearmesh.errors import ConfigError, Unreachable

T = TypeVar("T")


class OwnLoop:
    """May be used from several threads. `close` ends the calls of other threads, with Unreachable."""

    def __init__(self, what: str, usage: str) -> None:
        """`what` works on it, for people; `usage` shows how it is opened."""
        self._what = what
        self._usage = usage
        # Made when it is opened, so that one that never is leaves nothing behind.
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._open = False
        # A call is handed to the loop before the end of everything, or not at all.
        self._gate = threading.Lock()

    def open(self, begin: Coroutine[Any, Any, T]) -> T:
        """Starts the loop, and begins; where that fails nothing is left."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nearmesh-client", daemon=True)
        self._thread.start()
        try:
            found = _result(asyncio.run_coroutine_threadsafe(begin, self._loop))
        except BaseException:
            self._stop()
            raise
        self._open = True
        return found

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """On the loop. Raises what it raises, ConfigError where the loop is not open, and Unreachable at its end."""
        with self._gate:
            if not self._open:
                work.close()
                raise ConfigError(f"{self._what} not open: {self._usage}")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return _result(future)
        except CancelledError:
            raise Unreachable("the client was closed while this call was under way") from None

    def each(self, stream: AsyncIterator[T]) -> Iterator[T]:
        """What comes, one after the other."""

        async def following() -> list[T]:
            """One more, or none."""
            async for one in stream:
                return [one]
            return []

        while found := self.run(following()):
            yield from found

    def close(self, leave: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Ends what other threads still wait for, and leaves."""
        with self._gate:
            self._open = False
        try:
            _result(asyncio.run_coroutine_threadsafe(_end(leave), self._loop))
        finally:
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end(leave: Callable[[], Coroutine[Any, Any, object]]) -> None:
    try:
        await end(asyncio.all_tasks() - {asyncio.current_task()})
        await leave()
    finally:
        await asyncio.get_running_loop().shutdown_asyncgens()


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except BaseException:
        # Ctrl-C while waiting: the call must not live on in the thread.
        future.cancel()
        raise
