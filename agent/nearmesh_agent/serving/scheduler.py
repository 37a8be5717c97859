"""The one place where requests meet the engine: a queue, and as many engine calls at a time as suit the machine.

Engine threads take their next batch from the queue themselves, so that no engine waits for the event loop between two
calls. A model whose calls take microseconds is run on the event loop instead: handing it to a thread would cost more
than the call.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence

from nearmesh.errors import DeadlineExceeded, MeshError, NotReady
from nearmesh_agent.engines.base import Array, Engine
from nearmesh_agent.serving.admission import Load, finish_s, usable_s
from nearmesh_agent.serving.batch import BatchLayout
from nearmesh_agent.serving.call import EngineCalls, Result
from nearmesh_agent.serving.company import Company
from nearmesh_agent.serving.entrance import Entrance
from nearmesh_agent.serving.occupancy import Occupancy, give_way
from nearmesh_agent.serving.queue import DEFAULT_PRIORITY, Answer, Limits, Prospect, RequestQueue, Waiting
from nearmesh_agent.serving.times import ServiceTimes

log = logging.getLogger(__name__)

Clock = Callable[[], float]

# An engine call up to this long runs on the event loop.
INLINE_S = 50e-6
# On a busy machine it may take longer at times; when none takes less than this, it has become another call.
_TOO_LONG_S = 5 * INLINE_S
# Who computes: the event loop, or an engine thread by its number.
_LOOP = 0
_numbers = itertools.count(1)
_LATE = "the deadline passed in the queue"


class Scheduler:
    """Runs requests on one engine. `run` and `close` belong to one event loop."""

    def __init__(
        self,
        engine: Engine,
        layout: BatchLayout,
        times: ServiceTimes,
        *,
        limits: Limits,
        clock: Clock,
        name: str,
        occupancy: Occupancy | None = None,
        apart: bool = False,
    ) -> None:
        self.instances = engine.instances
        self._calls = EngineCalls(engine, layout, times, clock=clock, instances=engine.instances)
        self._layout = layout
        self._times = times
        self._limits = limits
        self._clock = clock
        self.name = name
        self._occupancy = occupancy or Occupancy()
        self._queue = RequestQueue()
        # Held for moments only; engine threads wait on it for work.
        self._wake = threading.Condition(threading.Lock())
        self._threads: list[threading.Thread] = []
        self._idle = 0
        # Of each call that computes: when it began, and whose it is. Changed with the lock held.
        self._running: dict[int, tuple[float, list[Waiting]]] = {}
        self._entrance = Entrance(
            self._queue, self._running, times, instances=engine.instances, limits=limits, name=name
        )
        # Without rows to share out the loop would gain little, and such models are more often those whose calls may
        # take any time, since a loop in their graph depends on the input. Nor may a large input hold the loop up.
        self._short = layout.max_rows > 0 and layout.fixed and 0 < times.best_mean_s <= INLINE_S
        # However short its calls seemed to be, it is not trusted with the event loop.
        self.apart = apart
        self._flushing = False
        self._company = Company()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._in_flight = 0
        self._closed = False
        self._abandoned = False

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def inline(self) -> bool:
        """Whether calls are short enough for the event loop, and were so when nothing disturbed them."""
        return self._short and not self.apart and self._times.fastest_s <= _TOO_LONG_S

    def longest_running_s(self) -> float:
        """How long the oldest engine call that has not come back has taken."""
        started = [began_s for began_s, _ in list(self._running.values())]
        return self._clock() - min(started) if started else 0.0

    def busy_share(self) -> float:
        """The share of the instances that compute at the moment, 0 to 1."""
        return min(1.0, len(self._running) / self.instances)

    async def run(
        self, inputs: Mapping[str, Array], *, timeout_s: float | None = None, priority: int = DEFAULT_PRIORITY
    ) -> Answer:
        """The engine's answer. A caller that is cancelled or late while it waits never reaches the engine.

        Raises Overloaded when the queue is full or too long for `timeout_s`, DeadlineExceeded, NotReady after `close`,
        and what the engine raises.
        """
        request = self._admit(inputs, timeout_s, priority)
        timer = None
        if timeout_s is not None and not self._flushing:
            # A call that hangs must not keep those who wait for it beyond their time.
            timer = request.future.get_loop().call_later(timeout_s, self._expire, request)
        try:
            return await request.future
        except asyncio.CancelledError:
            with self._wake:
                left = self._queue.leave(request)
            self._gave_up(request, waited=left)
            if left:
                self._over(1)
            raise
        finally:
            if timer:
                timer.cancel()

    def _gave_up(self, request: Waiting, *, waited: bool) -> None:
        """The caller left: because its time was up, or for reasons of its own."""
        late_s = self._clock() - request.deadline_s
        if late_s >= 0:
            self._judge(request)
        elif waited:
            self._entrance.outcomes.waited(gave_up=True)

    def _judge(self, request: Waiting) -> None:
        """An answer is ready, or the time for it is up."""
        if request.deadline_s < math.inf:
            self._entrance.outcomes.answered(request.deadline_s - self._clock(), request.deadline_s - request.entered_s)

    def _expire(self, request: Waiting) -> None:
        with self._wake:
            left = self._queue.leave(request)
        if left:
            self._expired([request])

    def _expired(self, requests: Sequence[Waiting]) -> None:
        for request in requests:
            self._judge(request)
        self._fail(requests, DeadlineExceeded(_LATE))

    # Admission.

    def check_room(self, rows: int, *, timeout_s: float | None = None, priority: int = DEFAULT_PRIORITY) -> None:
        """Whether a request would come in, before its tensors are here. Raises what `run` would raise at once."""
        self._check_open(timeout_s)
        now = self._clock()
        prospect = Prospect(rows, priority, math.inf if timeout_s is None else now + timeout_s)
        with self._wake:
            self._entrance.check(prospect, now)

    def _check_open(self, timeout_s: float | None) -> None:
        if self._closed:
            raise NotReady(f"{self.name} is being unloaded from this node")
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded("the request's deadline had passed when it arrived")

    def _admit(self, inputs: Mapping[str, Array], timeout_s: float | None, priority: int) -> Waiting:
        self._check_open(timeout_s)
        now = self._clock()
        loop = self._loop = self._loop or asyncio.get_running_loop()
        request = Waiting(
            inputs,
            self._layout.rows(inputs),
            self._layout.kind(inputs),
            priority,
            math.inf if timeout_s is None else now + timeout_s,
            now,
            loop.create_future(),
        )
        with self._wake:
            displaced = self._entrance.check(request, now)
            if displaced is not None:
                self._queue.leave(displaced)
            inline = self.inline and not self._running
            if not inline:
                self._call_thread()
            self._queue.push(request)
            self._in_flight += 1
            self._empty.clear()
        if displaced is not None:
            self._fail([displaced], self._entrance.overloaded(f"a request of priority {priority} took its place"))
        if inline:
            self._flush_soon()
        return request

    # Engine calls in threads.

    def _call_thread(self) -> None:
        """Wakes an engine thread, or starts one more. The lock is held."""
        if self._idle:
            self._wake.notify()
        elif len(self._threads) < self.instances:
            thread = threading.Thread(
                target=self._work, args=(next(_numbers),), name=f"engine-{self.name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _work(self, number: int) -> None:
        """An engine thread's life."""
        give_way()
        while batch := self._next_batch(number):
            self._serve(number, batch)
            # A thread that waits for the next one keeps no answers in memory.
            del batch

    def _next_batch(self, number: int) -> list[Waiting]:
        """Waits for work; empty when there will be no more."""
        with self._wake:
            while not self._abandoned:
                wait_s = self._wait_s()
                if wait_s is None or wait_s > 0:
                    self._idle += 1
                    self._wake.wait(wait_s)
                    self._idle -= 1
                elif batch := self._take(number):
                    if self._queue and self._entrance.idle > 0:
                        # Two requests may have come before the one thread that was called for them was awake.
                        self._call_thread()
                    return batch
            return []

    def _wait_s(self) -> float | None:
        """How long a thread waits before it takes a batch; None: until it is called. The lock is held."""
        # An instance may be taken by a call on the event loop.
        if not self._queue or self._entrance.idle <= 0:
            return None
        if not self._limits.max_delay_s or self._closed or self._queue.rows >= self._times.best:
            return 0.0
        needed_s = finish_s(Load(self.instances, 0.0), self._queue.rows, self._times)
        return min(self._due_s(request, needed_s) for request in self._queue) - self._clock()

    def _due_s(self, request: Waiting, needed_s: float) -> float:
        """When a request stops waiting for company."""
        patience_s = usable_s(request.deadline_s - request.entered_s) - needed_s
        return request.entered_s + min(self._limits.max_delay_s, patience_s)

    def _take(self, number: int) -> list[Waiting]:
        """The next batch; those whose time is up are told so. The lock is held."""
        now = self._clock()
        rows = self._queue.rows
        if number != _LOOP and not self._limits.max_delay_s:
            # Two instances with a row each are sooner done than one with two.
            rows = -(-rows // self._entrance.idle)
        batch, late = self._queue.pop(self._times.limit(rows), now)
        if late:
            self._post(self._expired, late)
        if batch:
            self._running[number] = now, batch
        return batch

    def _serve(self, number: int, batch: list[Waiting]) -> None:
        alone = self._occupancy.enter() and not self._queue
        try:
            results = self._calls.run(batch, alone=alone)
        finally:
            self._occupancy.leave()
            with self._wake:
                self._running.pop(number, None)
        self._post(self._deliver, batch, results)

    def _post(self, work: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(work, *args)
        except RuntimeError:
            # The loop is closed: nobody waits for the answer any more.
            log.debug("an answer of %s came after the end", self.name)

    # Engine calls on the event loop.

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            assert self._loop is not None
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """One engine call; what is left is served after other work of the loop had its turn."""
        enough = self._queue.rows >= self._times.best
        if self._company.expected(len(self._queue), enough=enough, now_s=self._clock()):
            assert self._loop is not None
            self._loop.call_soon(self._flush)
            return
        self._flushing = False
        with self._wake:
            # Engine threads may have come first; they go on with the queue.
            batch = self._take(_LOOP) if self._entrance.idle > 0 else []
        if batch:
            try:
                results = self._calls.run(batch, alone=False)
            finally:
                with self._wake:
                    self._running.pop(_LOOP, None)
            self._deliver(batch, results)
        with self._wake:
            inline = self.inline and not self._running
            if self._queue and not inline:
                self._call_thread()
        if self._queue and inline:
            self._flush_soon()

    # Answers.

    def _deliver(self, batch: Sequence[Waiting], results: Sequence[Result]) -> None:
        for request, result in zip(batch, results, strict=True):
            request.inputs = {}
            self._entrance.outcomes.waited(gave_up=False)
            if request.future.done():
                continue
            self._judge(request)
            if isinstance(result, Exception):
                request.future.set_exception(result)
            else:
                request.future.set_result(result)
        self._over(len(batch))

    def _fail(self, requests: Sequence[Waiting], error: MeshError) -> None:
        for request in requests:
            request.inputs = {}
            if not request.future.done():
                request.future.set_exception(error)
        self._over(len(requests))

    def _over(self, count: int) -> None:
        self._in_flight -= count
        if not self._in_flight:
            self._empty.set()

    # The end.

    async def close(self, timeout_s: float, *, give_up: bool = False) -> bool:
        """Takes nothing more and waits for what is in flight; False if an engine call did not end in time.

        What is still being computed then is answered when it is done, or told at once with `give_up`.
        """
        self._closed = True
        with self._wake:
            self._wake.notify_all()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            pass
        finally:
            self._abandon(calls=give_up)
        return not self._running

    def _abandon(self, *, calls: bool) -> None:
        """The engine threads end with the calls that they are in; who waits in the queue is told, or for `calls`."""
        gone = NotReady(f"{self.name} was unloaded from this node before it had answered; another node may serve it")
        with self._wake:
            self._abandoned = True
            left = [request for request in list(self._queue) if self._queue.leave(request)]
            hung = [request for _, batch in self._running.values() for request in batch] if calls else []
            self._wake.notify_all()
        if left:
            self._fail(left, gone)
        for request in hung:
            # They count as in flight until their call comes back.
            if not request.future.done():
                request.future.set_exception(gone)
