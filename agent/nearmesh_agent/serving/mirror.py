"""Asks a version on trial what the standing one has answered, and compares: when the node has room, at low priority.

What finds no room is not asked: a sample of the requests says as much as all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nearmesh.errors import DeadlineExceeded, Draining, NotReady, Overloaded
from nearmesh_agent.engines.base import Array
from nearmesh_agent.serving.agreement import agrees
from nearmesh_agent.serving.attempts import Attempts
from nearmesh_agent.serving.metrics import fault_of
from nearmesh_agent.serving.queue import LOWEST_PRIORITY, Answer
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.trial import patience_s
from nearmesh_agent.serving.wire import Received

log = logging.getLogger(__name__)

# Requests that wait to be asked again, and what they and their answers may take: they are held in memory.
MOST, MOST_BYTES = 16, 32 * 1024 * 1024
# Answers above this are compared in a thread.
_LARGE_BYTES = 256 * 1024
# How a mirrored request may end that says nothing about the version: the node had no room, or something else to do.
_NO_WORD = (Overloaded, Draining, NotReady, DeadlineExceeded)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A request with the standing version's answer to it."""

    standing: Replica
    trial: Replica
    request: Received
    outputs: Mapping[str, Array]

    @property
    def size_bytes(self) -> int:
        return self.request.size_bytes + self.outputs_bytes

    @property
    def outputs_bytes(self) -> int:
        return sum(array.nbytes for array in self.outputs.values())


class Mirror:
    """Of one node; belongs to one event loop. `run` is its own task; without it nothing is asked."""

    def __init__(self, replicas: Iterable[Replica]) -> None:
        """`replicas` are looked through before each request: the node's table."""
        self._replicas = replicas
        self._waiting: asyncio.Queue[_Seen] = asyncio.Queue(MOST)
        self._bytes = 0
        self._attempts = Attempts()

    def offer(self, standing: Replica, trial: Replica, request: Received, outputs: Mapping[str, Array]) -> None:
        """Takes a request along that `standing` has just answered, if there is room for it."""
        seen = _Seen(standing, trial, request, outputs)
        if self._waiting.full() or self._bytes + seen.size_bytes > MOST_BYTES:
            return
        self._bytes += seen.size_bytes
        self._waiting.put_nowait(seen)

    async def run(self) -> None:
        """For ever, one request at a time."""
        while True:
            seen = await self._waiting.get()
            self._bytes -= seen.size_bytes
            trial = seen.trial
            # A trial that is over says no more; a version that is out of memory is not loaded for this.
            if trial.on_trial and trial.active and trial.ready and self._room():
                await self._ask(seen)
            # What has been compared must not stay in memory until the next one comes.
            del seen

    def _room(self) -> bool:
        """Nothing waits on this node, and every version has an engine that is free."""
        return not any(replica.waiting or replica.busy_share >= 1 for replica in self._replicas if replica.active)

    async def _ask(self, seen: _Seen) -> None:
        within_s = patience_s(None, seen.standing.measured.service().p95_ms / 1000)
        outcome = await self._attempts.within(_infer(seen.trial, seen.request, within_s), within_s)
        if isinstance(outcome.error, _NO_WORD):
            return
        if outcome.answer:
            # How long it takes shows here too, before it gets any requests of its own.
            seen.trial.measured.served(outcome.answer.queue_ms + outcome.answer.compute_ms)
        tally = seen.trial.tally
        agreed = outcome.answer is not None and await self._agree(seen, outcome.answer)
        tally.compared += 1
        tally.agreed += agreed
        if outcome.error:
            # The standing version has answered this very request.
            log.debug("a mirrored request failed model=%s: %s", seen.trial.name, outcome.error)
            tally.failed(fault_of(outcome.reason), 0.0)

    async def _agree(self, seen: _Seen, answer: Answer) -> bool:
        package = seen.trial.package
        if seen.outputs_bytes <= _LARGE_BYTES:
            return agrees(seen.outputs, answer.outputs, package)
        return await asyncio.to_thread(agrees, seen.outputs, answer.outputs, package)


async def _infer(trial: Replica, request: Received, timeout_s: float) -> Answer:
    """Read anew, since the two versions need not have the same inputs."""
    return await trial.infer(trial.intake.read(request), timeout_s=timeout_s, priority=LOWEST_PRIORITY)
