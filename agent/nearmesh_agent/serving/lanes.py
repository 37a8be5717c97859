"""The one place where requests meet the engine: a bounded queue before as many threads as the replica has instances.

A batcher that shares engine calls between requests would stand here, with the same `run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from nearmesh.errors import DeadlineExceeded, NotReady, Overloaded
from nearmesh_agent.engines.base import Array, Engine

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got from the engine, and where its time on the node went."""

    outputs: Mapping[str, Array]
    queue_ms: float
    compute_ms: float


@dataclass(slots=True, eq=False)
class _Job:
    inputs: Mapping[str, Array]
    entered_s: float
    # On the lanes' clock; None when the caller set none.
    deadline_s: float | None


class Lanes:
    """Runs requests on one engine, first come first served. `run` and `close` belong to one event loop."""

    def __init__(self, engine: Engine, *, instances: int, queue: int, clock: Clock, name: str) -> None:
        self.instances = instances if engine.thread_safe else 1
        self._engine = engine
        self._queue = queue
        self._clock = clock
        self._name = name
        self._pool = ThreadPoolExecutor(self.instances, thread_name_prefix=f"engine-{name}")
        # Both are changed by engine threads too; each change is one atomic step of the interpreter's.
        self._waiting: set[_Job] = set()
        self._running: dict[_Job, float] = {}
        self._futures: set[Future[Answer]] = set()
        self._closed = False
        self._abandoned = False

    @property
    def closed(self) -> bool:
        """Nothing more is taken."""
        return self._closed

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return len(self._futures)

    def longest_running_s(self) -> float:
        """How long the oldest engine call that has not come back has taken."""
        started = list(self._running.values())
        return self._clock() - min(started) if started else 0.0

    async def run(self, inputs: Mapping[str, Array], *, timeout_s: float | None, typical_ms: float) -> Answer:
        """The engine's answer. A caller that is cancelled or late while it waits never reaches the engine.

        `typical_ms` is what an engine call is expected to take; it makes the advice when to come back. Raises
        Overloaded when the queue is full or too long for `timeout_s`, DeadlineExceeded, NotReady after `close`, and
        what the engine raises.
        """
        if self._closed:
            raise NotReady(f"{self._name} is being unloaded from this node")
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded("the request's deadline had passed when it arrived")
        if self.in_flight >= self.instances + self._queue:
            raise self._overloaded(typical_ms)
        if timeout_s is not None:
            self._check_hope(timeout_s * 1000, typical_ms)
        now = self._clock()
        job = _Job(inputs, now, None if timeout_s is None else now + timeout_s)
        try:
            return await asyncio.wrap_future(self._submit(job))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._abandoned and not (task and task.cancelling()):
                raise NotReady(f"{self._name} was unloaded from this node before the request's turn") from None
            raise

    def _overloaded(self, typical_ms: float) -> Overloaded:
        waiting, retry_after_ms = len(self._waiting), self._queue * typical_ms / self.instances
        return Overloaded(
            f"{waiting} requests wait for {self._name} on this node, as many as may; try another node",
            retry_after_ms=max(1, round(retry_after_ms)),
        )

    def _check_hope(self, timeout_ms: float, typical_ms: float) -> None:
        """A request that would only wait for its deadline is refused while another node can still answer in time."""
        waiting = len(self._waiting)
        wait_ms = waiting * typical_ms / self.instances
        if waiting and wait_ms + typical_ms > timeout_ms:
            raise Overloaded(
                f"{waiting} requests wait for {self._name} on this node, which takes about {wait_ms + typical_ms:.0f} "
                f"ms; the request has {timeout_ms:.0f} ms left; try another node",
                retry_after_ms=max(1, round(wait_ms + typical_ms - timeout_ms)),
            )

    def _submit(self, job: _Job) -> Future[Answer]:
        self._waiting.add(job)
        future = self._pool.submit(self._execute, job)
        self._futures.add(future)
        future.add_done_callback(lambda done: self._leave(job, done))
        return future

    def _leave(self, job: _Job, future: Future[Answer]) -> None:
        self._waiting.discard(job)
        self._futures.discard(future)
        # The pool keeps a cancelled job until a thread comes by; its tensors need not wait with it.
        job.inputs = {}

    def _execute(self, job: _Job) -> Answer:
        """In an engine thread."""
        started = self._clock()
        self._waiting.discard(job)
        if job.deadline_s is not None and started >= job.deadline_s:
            raise DeadlineExceeded(f"the deadline passed after {started - job.entered_s:.3f} s in the queue")
        self._running[job] = started
        try:
            outputs = self._engine.infer(job.inputs)
        finally:
            del self._running[job]
        return Answer(outputs, (started - job.entered_s) * 1000, (self._clock() - started) * 1000)

    async def close(self, timeout_s: float) -> bool:
        """Takes nothing more and waits for what is in flight; False if some of it did not end in time."""
        self._closed = True
        left = [asyncio.wrap_future(future) for future in self._futures.copy()]
        if left:
            await asyncio.wait(left, timeout=timeout_s)
        self._abandoned = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        return not self._running
