"""Decoupled models: several answers to one request, each made in a thread when the caller is ready to take it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, cast

from nearmesh.errors import DeadlineExceeded, NotReady, Overloaded
from nearmesh_agent.engines.base import Array, DecoupledEngine, Engine

log = logging.getLogger(__name__)

Outputs = Mapping[str, Array]
T = TypeVar("T")


class Streams:
    """The requests that a decoupled engine works on: as many at a time as it has instances. Of one event loop."""

    def __init__(self, engine: Engine, *, most: int, name: str) -> None:
        """`most` requests may wait. Threads are made when the first request comes."""
        self._engine = engine
        self._most = most
        self._name = name
        self._free = asyncio.Semaphore(engine.instances)
        self._pool = ThreadPoolExecutor(engine.instances, thread_name_prefix=f"engine-{name}")
        self._count = 0
        # Requests that have an instance.
        self._works: set[_Work] = set()
        # What callers who left have left behind: it ends when its thread comes back.
        self._endings: set[asyncio.Task[None]] = set()
        self._closed = False
        # Nobody waits for a step any more that has not come back.
        self._given_up = False
        self._waits: set[asyncio.Timeout] = set()
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        """Requests that wait or run."""
        return self._count

    def longest_running_s(self) -> float:
        """How long the oldest step that has not come back has taken."""
        return max((work.running_s() for work in list(self._works)), default=0.0)

    async def run(self, inputs: Mapping[str, Array], *, timeout_s: float | None) -> AsyncGenerator[Outputs, None]:
        """The answers. Raises Overloaded, DeadlineExceeded, NotReady after `close`, and what the engine raises."""
        self._admit()
        until_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        self._count += 1
        self._none.clear()
        try:
            await self._in_time(self._free.acquire(), until_s)
        except BaseException:
            self._leave()
            raise
        work = _Work(cast(DecoupledEngine, self._engine), inputs, self._pool)
        self._works.add(work)
        try:
            while True:
                self._check_time(until_s)
                outputs = await self._in_time(work.next(), until_s)
                if outputs is None:
                    return
                yield outputs
        finally:
            self._end(work)

    def _admit(self) -> None:
        if self._closed:
            raise NotReady(f"{self._name} is being unloaded from this node")
        if self._count >= self._most + self._engine.instances:
            raise Overloaded(f"{self._count} requests are at {self._name} on this node, as many as may; try another")

    def _check_time(self, until_s: float | None) -> None:
        if until_s is not None and asyncio.get_running_loop().time() >= until_s:
            raise self._late()

    async def _in_time(self, work: Awaitable[T], until_s: float | None) -> T:
        try:
            async with asyncio.timeout_at(until_s) as wait:
                self._waits.add(wait)
                try:
                    return await work
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            raise (self._gone() if self._given_up else self._late()) from None

    def _gone(self) -> NotReady:
        return NotReady(f"{self._name} hung on this node and was given up; another node may serve it")

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"{self._name} had not given all its answers by the deadline")

    # The end of a request.

    def _end(self, work: _Work) -> None:
        """Gives the instance to the next request. What computes cannot be broken off, so that may be later."""
        if work.exhausted:
            self._give_back(work)
            return
        ending = asyncio.create_task(work.close())
        self._endings.add(ending)
        ending.add_done_callback(partial(self._ended, work))

    def _ended(self, work: _Work, ending: asyncio.Task[None]) -> None:
        self._endings.discard(ending)
        self._give_back(work)
        if not ending.cancelled() and (error := ending.exception()):
            # The caller has left; nobody else can be told.
            log.error("%s failed when a request was broken off", self._name, exc_info=error)

    def _give_back(self, work: _Work) -> None:
        self._works.discard(work)
        self._free.release()
        self._leave()

    def _leave(self) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def close(self, timeout_s: float, *, give_up: bool = False) -> bool:
        """Takes nothing more and waits for what is in flight; False if some of it did not end in time.

        With `give_up`, those who still wait then are told so, whether it is for an instance or for an answer.
        """
        self._closed = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._none.wait()
        except TimeoutError:
            if give_up:
                self._given_up = True
                # One whose own deadline has just come ends by itself.
                for wait in [wait for wait in self._waits if not wait.expired()]:
                    wait.reschedule(asyncio.get_running_loop().time())
            return False
        self._pool.shutdown(wait=False)
        return True


class _Work:
    """One request's answers; every step is taken in a thread, the beginning and the end as well."""

    def __init__(self, engine: DecoupledEngine, inputs: Mapping[str, Array], pool: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._inputs = inputs
        self._pool = pool
        self._answers: Iterator[dict[str, Array]] | None = None
        self._step: asyncio.Future[Outputs | None] | None = None
        self._begun_s = 0.0
        # It has given all its answers: there is nothing to close.
        self.exhausted = False

    async def next(self) -> Outputs | None:
        """None when there are no more. A cancelled caller does not wait for the thread."""
        self._begun_s = time.monotonic()
        self._step = asyncio.get_running_loop().run_in_executor(self._pool, self._advance)
        outputs = await asyncio.shield(self._step)
        self.exhausted = outputs is None
        return outputs

    def running_s(self) -> float:
        """How long the engine has been at the step under way; 0 while the caller has its turn."""
        return time.monotonic() - self._begun_s if self._step and not self._step.done() else 0.0

    def _advance(self) -> Outputs | None:
        """In a thread. A StopIteration could not leave it."""
        if self._answers is None:
            self._answers = self._engine.stream(self._inputs)
        return next(self._answers, None)

    async def close(self) -> None:
        """Ends the work, once the step under way is over. Raises what its end raises."""
        if self._step:
            await asyncio.wait([self._step])
        close = getattr(self._answers, "close", None)
        if close:
            await asyncio.get_running_loop().run_in_executor(self._pool, close)
