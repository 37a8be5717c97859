"""How a server is driven: callers that each wait for their answer, and arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import times
from benchmarks.serving.models import Arrays, difference
from benchmarks.serving.processes import alive, busy_s, cpu_s, peak_bytes
from benchmarks.serving.transports import OK, REFUSED, Failed, Transport
from nearmesh.quantiles import quantile

# Longer than any queue of a closed loop.
PATIENCE_S = 60.0
# Asked for at once after a server's first right answer: enough for every system to form batches.
BURST = 32
# A refused caller of a closed loop asks again, but not at once: it would measure refusals.
PAUSE_S = 0.001
# What a call is counted as that its own client began, or gave up, too late or early.
CLIENT_LATE, CANCELLED = "CLIENT_LATE", "CANCELLED"
# How long one waits for a queue to become empty.
EMPTY_WITHIN_S = 10.0
# A queue is empty again when one request takes at most so many times its usual time, and so much more.
USUAL_TIMES, USUAL_PLUS_S = 2.0, 0.01


async def probe(
    transport: Transport, expected: Arrays | None, tolerance: float, *, pid: int, within_s: float
) -> dict[str, Any]:
    """Waits until the server answers, then asks for every request at once and compares.

    {"difference": largest relative difference}, or {"failed": why}. `expected` None: nothing is compared.
    """
    until = time.monotonic() + within_s
    while failure := await _try(transport, PATIENCE_S):
        if not alive(pid):
            return {"failed": "the server ended"}
        if time.monotonic() > until:
            return {"failed": f"no answer within {within_s:.0f} s; last: {failure}"}
        await asyncio.sleep(0.05)
    try:
        answers = await asyncio.gather(*(_insist(transport, number) for number in range(BURST)))
    except Failed as error:
        return {"failed": f"one of {BURST} requests at once: {error}"}
    if expected is None:
        return {"difference": 0.0}
    rows = len(next(iter(expected.values())))
    found = [
        difference(transport.outputs(answer), {name: array[i % rows] for name, array in expected.items()})
        for i, answer in enumerate(answers)
    ]
    worst = max(found)
    return {"difference": worst} if worst <= tolerance else {"failed": f"wrong by {worst:.3g} of the largest number"}


async def _insist(transport: Transport, number: int) -> Any:
    """Asks until the request is not refused: a short queue is no wrong answer. Raises Failed."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await transport.ask(number, PATIENCE_S)
        except Failed as error:
            if error.status != REFUSED or time.monotonic() > until:
                raise
        await asyncio.sleep(PAUSE_S)


async def _try(transport: Transport, timeout_s: float) -> str:
    """Asks once; what went wrong."""
    try:
        await transport.ask(0, timeout_s)
    except Failed as error:
        return str(error)
    return ""


class Watch:
    """What the processes of a measurement use from `start` to `stop`."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._before = self._now()

    def _now(self) -> tuple[float, float, float, float]:
        return time.perf_counter(), cpu_s(self._server), time.process_time(), busy_s()

    def start(self) -> None:
        self._before = self._now()

    def stop(self) -> dict[str, float]:
        """Processor seconds of the server with its family, of this client, and of all others, a second."""
        elapsed, server, client, busy = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return {
            "elapsed_s": elapsed,
            # What an ended process used is no longer seen.
            "server_cpu_s": max(0.0, server),
            "client_cores": client / elapsed,
            "other_cores": max(0.0, busy - server - client) / elapsed,
        }


async def closed(transport: Transport, *, callers: int, warm_s: float, seconds: float, pid: int) -> dict[str, Any]:
    """Callers that each ask again as soon as they have their answer. Answers that come in the window count."""
    begin = time.perf_counter() + warm_s
    end = begin + seconds
    done_ms: list[float] = []
    errors: Counter[str] = Counter()

    async def caller(number: int) -> None:
        while (asked := time.perf_counter()) < end:
            number += 1
            status = OK
            try:
                await transport.ask(number, PATIENCE_S)
            except Failed as error:
                status = error.status
                await asyncio.sleep(PAUSE_S)
            now = time.perf_counter()
            if begin <= now < end and status == OK:
                done_ms.append((now - asked) * 1000)
            elif begin <= now < end:
                errors[status] += 1

    tasks = [asyncio.create_task(caller(number)) for number in range(callers)]
    watch = Watch(pid)
    await asyncio.sleep(begin - time.perf_counter())
    watch.start()
    await asyncio.sleep(end - time.perf_counter())
    used = watch.stop()
    await asyncio.gather(*tasks)
    percentiles = times(done_ms) if done_ms else {}
    return {
        "calls": len(done_ms),
        "per_s": len(done_ms) / seconds,
        "errors": dict(errors),
        **percentiles,
        **used,
        "peak_bytes": peak_bytes(pid),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """An open loop: arrivals as of many people who know nothing of each other (Poisson)."""

    per_s: float
    warm_s: float
    seconds: float
    deadline_s: float
    # The share of callers who give up at a random time within their deadline.
    cancelling: float
    # What one request takes when it is alone.
    usual_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """One call of a burst. Times in seconds, the first one from the burst's beginning."""

    due_s: float
    # When the caller gives up, after it is due; None: not before the deadline.
    gives_up_s: float | None


def arrivals(burst: Burst) -> Iterator[Arrival]:
    """All calls of a burst, in order."""
    chance = random.Random(burst.seed)
    due_s = chance.expovariate(burst.per_s)
    while due_s < burst.warm_s + burst.seconds:
        gives_up_s = chance.uniform(0, burst.deadline_s) if chance.random() < burst.cancelling else None
        yield Arrival(due_s, gives_up_s)
        due_s += chance.expovariate(burst.per_s)


async def opened(transport: Transport, burst: Burst, *, pid: int) -> dict[str, Any]:
    """Sends a burst, and then looks how long the server goes on with it."""
    began = time.perf_counter()
    calls: list[asyncio.Task[tuple[str, float]]] = []
    counted: list[asyncio.Task[tuple[str, float]]] = []
    lags_ms = []
    watch = Watch(pid)
    for number, arrival in enumerate(arrivals(burst)):
        # Always yields, so that calls proceed even when the client is behind.
        await asyncio.sleep(max(0.0, began + arrival.due_s - time.perf_counter()))
        lags_ms.append((time.perf_counter() - began - arrival.due_s) * 1000)
        call = asyncio.create_task(_call(transport, number, arrival, began, burst.deadline_s))
        calls.append(call)
        if arrival.due_s >= burst.warm_s:
            if not counted:
                watch.start()
            counted.append(call)
    used = watch.stop()
    empty_s = await _until_empty(transport, burst.usual_s)
    await asyncio.gather(*calls)
    return {
        "offered_per_s": len(counted) / burst.seconds,
        "statuses": statuses([call.result() for call in counted]),
        "goodput_per_s": sum(status == OK for status, _ in (call.result() for call in counted)) / burst.seconds,
        "lag_p99_ms": quantile(sorted(lags_ms), 0.99),
        "empty_s": empty_s,
        "peak_bytes": peak_bytes(pid),
        **used,
    }


async def _call(
    transport: Transport, number: int, arrival: Arrival, began: float, deadline_s: float
) -> tuple[str, float]:
    """The status and the time of one call, from when it was due."""
    due = began + arrival.due_s
    left_s = due + deadline_s - time.perf_counter()
    status = CLIENT_LATE
    if left_s > 0:
        gives_up_s = None if arrival.gives_up_s is None else arrival.gives_up_s - (deadline_s - left_s)
        try:
            async with asyncio.timeout(gives_up_s):
                await transport.ask(number, left_s)
            status = OK
        except TimeoutError:
            status = CANCELLED
        except Failed as error:
            status = error.status
    taken_s = time.perf_counter() - due
    # An answer beyond its deadline is of no use to its caller.
    return (CLIENT_LATE if status == OK and taken_s > deadline_s else status), taken_s


async def _until_empty(transport: Transport, usual_s: float) -> float | None:
    """How long from now until a request that comes alone takes about its usual time; None: longer than one waits."""
    began = time.perf_counter()
    until = began + EMPTY_WITHIN_S
    while (asked := time.perf_counter()) < until:
        failure = await _try(transport, until - asked)
        if not failure and time.perf_counter() - asked <= usual_s * USUAL_TIMES + USUAL_PLUS_S:
            return time.perf_counter() - began
        await asyncio.sleep(PAUSE_S)
    return None


def statuses(calls: list[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """For each status how many calls had it, and after what time."""
    by_status: dict[str, list[float]] = {}
    for status, taken_s in calls:
        by_status.setdefault(status, []).append(taken_s * 1000)
    return {status: {"calls": len(taken_ms), **times(taken_ms)} for status, taken_ms in sorted(by_status.items())}
