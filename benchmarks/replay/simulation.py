"""Plays a day: every request travels, waits, is served and travels back; what happened comes out.

One loop over events in the order of time. A node is some instances behind one first-come-first-served queue, which
refuses at once what would wait too long. A second attempt runs beside the first, and the first answer counts; the work
of the other is done and paid for all the same.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.replay.policy import Known, Policy
from benchmarks.replay.world import Array, Fault, World

# A request that nobody answered by then has failed. It counts as having taken so long: an error is slow, never fast.
GIVE_UP_S = 2.0
ATTEMPTS = 3
# A node refuses a request that would wait longer than this for an instance.
LONGEST_WAIT_S = 0.3
# What a refusal or an error takes on the node.
REFUSAL_S = 0.001
# Everyone hears this long after it happened that a node leaves or is back.
NEWS_S = 1.0
TICK_S = 1.0
# An ill node is so many times slower. A liar is as slow, and says that it takes no time at all.
SLOWDOWN, LIE_S = 10.0, 0.002
# Jitter is drawn once and used in a circle: drawing is slower than the rest of a request's way.
_DRAWS = 1 << 18
_Z99 = 2.3263478740408408

# When, which handler, node, request or value, when the attempt was sent, and what the node says of its part: how long
# the request waited and how long it was served; of an error, whether it is more than a refusal.
_Event = tuple[float, int, int, int, float, float, float]
_AT_NODE, _ANSWER, _ERROR, _PATIENCE, _TICK, _PRICE, _NEWS, _POWER, _FAULT, _COPIED = range(10)
_FAULTS: tuple[Fault | None, ...] = (None, "slow", "erroring", "frozen", "lying")


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What became of the requests. The first two arrays have one value for each, in the world's order."""

    policy: str
    # From the caller's start to the first good answer; GIVE_UP_S where there was none.
    took_s: Array
    failed: npt.NDArray[np.bool_]
    usd: float
    # How many inferences each node made, those for second attempts included.
    served: npt.NDArray[np.int64]
    # Attempts beyond each request's first.
    extra: int


def known_of(
    world: World,
    alive: Callable[[int], bool] = lambda node: True,
    send_copy: Callable[[int, int, float], None] = lambda region, node, now: None,
) -> Known:
    """What policies may know of a world when it begins."""
    hardware = world.nodes[0].hardware
    return Known(
        regions=len(world.regions),
        deadline_ms=world.deadline_ms,
        node_region=world.node_region.tolist(),
        spot=[node.spot for node in world.nodes],
        instances=[node.instances for node in world.nodes],
        per_second=world.per_second.tolist(),
        network_ms=world.mean_ms,
        deviation_ms=world.deviation_ms,
        service_ms=(hardware.service_ms_p50, hardware.service_ms_p50 * math.exp(_Z99 * hardware.sigma)),
        usd=world.usd_per_request[0].tolist(),
        present=world.present(0.0).tolist(),
        alive=alive,
        send_copy=send_copy,
    )


def play(world: World, make: Callable[[Known], Policy]) -> Played:
    """The whole day under one policy."""
    day = _Day(world, make)
    day.run()
    return day.played()


class _Day:
    """The state of one day. Lists, not arrays: single values are read and written a million times."""

    def __init__(self, world: World, make: Callable[[Known], Policy]) -> None:
        self._world = world
        self._known = known = known_of(world, self._alive, self._send_copy)
        self._policy = policy = make(known)
        self._pick, self._answered = policy.pick, policy.answered
        # The infinity at the end spares the loop a test.
        self._at: list[float] = [*world.arrival_s.tolist(), math.inf]
        self._where: list[int] = world.arrival_region.tolist()
        self._work: list[float] = world.work.tolist()
        self._took = [0.0] * len(self._where)
        self._draws: list[float] = (np.random.default_rng(0).exponential(size=_DRAWS) - 1.0).tolist()
        self._drawn = 0
        self._mean_s: list[list[float]] = (world.mean_ms / 1000).tolist()
        self._least_s: list[list[float]] = (world.least_ms / 1000).tolist()
        self._deviation_s: list[list[float]] = (world.deviation_ms / 1000).tolist()
        self._service_s = [node.hardware.service_ms_p50 / 1000 for node in world.nodes]
        # When each instance of a node is free; a heap.
        self._free = [[0.0] * node.instances for node in world.nodes]
        self._up: list[bool] = world.present(0.0).tolist()
        self._fault: list[Fault | None] = [None] * len(world.nodes)
        self._usd_each = list(known.usd)
        self._usd, self._served, self._extra = 0.0, [0] * len(world.nodes), 0
        # Of requests that were sent more than once: the nodes, and when each was asked; None for one that is over.
        self._tried: dict[int, dict[int, float | None]] = {}
        self._events: list[_Event] = sorted(_settled(world))

    def run(self) -> None:
        """Until the last request is over."""
        handlers = (
            self._at_node,
            self._answer,
            self._error,
            self._impatient,
            self._tick,
            self._price,
            self._news,
            self._power,
            self._falls_ill,
            self._copied,
        )
        events, at, where, pick, send, pop = self._events, self._at, self._where, self._pick, self._send, heapq.heappop
        request, next_at = 0, at[0]
        while events or next_at < math.inf:
            if not events or next_at <= events[0][0]:
                node = pick(where[request], next_at, ())
                if node >= 0:
                    send(request, node, next_at)
                request += 1
                next_at = at[request]
            else:
                now, kind, node, value, sent, waited, served = pop(events)
                handlers[kind](now, node, value, sent, waited, served)

    def played(self) -> Played:
        times = np.array(self._took)
        failed = (times == 0.0) | (times > GIVE_UP_S)
        return Played(
            policy=self._policy.name,
            took_s=np.where(failed, GIVE_UP_S, times),
            failed=failed,
            usd=self._usd,
            served=np.array(self._served),
            extra=self._extra,
        )

    def _send(self, request: int, node: int, now: float) -> None:
        region = self._where[request]
        self._drawn = (self._drawn + 1) % _DRAWS
        trip = self._mean_s[region][node] + self._deviation_s[region][node] * self._draws[self._drawn]
        if trip < self._least_s[region][node]:
            trip = self._least_s[region][node]
        heapq.heappush(self._events, (now + trip / 2, _AT_NODE, node, request, now, 0.0, 0.0))

    def _alive(self, node: int) -> bool:
        return self._up[node] and self._fault[node] != "frozen"

    def _send_copy(self, region: int, node: int, now: float) -> None:
        """What a copy takes is worked out as if it were at the node at once; it takes its turn and costs its price."""
        trip, fault = self._mean_s[region][node], self._fault[node]
        if not self._alive(node) or fault == "erroring":
            took = GIVE_UP_S if fault == "frozen" else trip + REFUSAL_S
            heapq.heappush(self._events, (now + took, _COPIED, node, region, now, 0.0, 0.0))
            return
        slots = self._free[node]
        start = max(slots[0], now)
        end = start + self._service_s[node] * self._work[self._drawn % len(self._work)] * (SLOWDOWN if fault else 1.0)
        heapq.heapreplace(slots, end)
        self._served[node] += 1
        self._usd += self._usd_each[node]
        self._extra += 1
        heapq.heappush(self._events, (end + trip, _COPIED, node, region, now, 1.0, 0.0))

    def _copied(self, now: float, node: int, region: int, sent: float, ok: float, _: float) -> None:
        self._policy.copied(region, node, now, now - sent, bool(ok))

    def _at_node(self, now: float, node: int, request: int, sent: float, *_: float) -> None:
        fault = self._fault[node]
        slots = self._free[node]
        start = slots[0] if slots[0] > now else now
        broken = fault == "erroring"
        if broken or not self._up[node] or start - now > LONGEST_WAIT_S:
            heapq.heappush(self._events, (now + REFUSAL_S + now - sent, _ERROR, node, request, sent, broken, 0.0))
            return
        if fault == "frozen":
            # The client closes the call when it gives up.
            heapq.heappush(self._events, (sent + GIVE_UP_S, _ERROR, node, request, sent, 1.0, 0.0))
            self._wait(request, node, now, sent, math.inf)
            return
        end = start + self._service_s[node] * self._work[request] * (SLOWDOWN if fault else 1.0)
        heapq.heapreplace(slots, end)
        self._served[node] += 1
        self._usd += self._usd_each[node]
        back = end + now - sent
        waited, served = (0.0, LIE_S) if fault == "lying" else (start - now, end - start)
        heapq.heappush(self._events, (back, _ANSWER, node, request, sent, waited, served))
        self._wait(request, node, now, sent, back)

    def _wait(self, request: int, node: int, now: float, sent: float, back: float) -> None:
        """The client's timer, but only where it will go off: the simulation may know, the policy does not."""
        late = sent + self._policy.patience_s[self._where[request]][node]
        if back > late:
            heapq.heappush(self._events, (max(late, now), _PATIENCE, node, request, sent, 0.0, 0.0))

    def _answer(self, now: float, node: int, request: int, sent: float, waited: float, served: float) -> None:
        if self._took[request]:
            # Another node was faster; nobody listens any more.
            return
        self._took[request] = now - self._at[request]
        self._answered(self._where[request], node, now, now - sent, waited, served)
        if request in self._tried:
            for other, asked in self._tried.pop(request).items():
                if other != node and asked is not None:
                    self._policy.overtaken(self._where[request], other, now, now - asked)

    def _error(self, now: float, node: int, request: int, sent: float, broken: float, _: float) -> None:
        if self._took[request]:
            return
        self._policy.failed(self._where[request], node, now, now - sent, refused=not broken)
        self._tried.setdefault(request, {})[node] = None
        self._again(request, now)

    def _impatient(self, now: float, node: int, request: int, sent: float, *_: float) -> None:
        if self._took[request]:
            return
        wait_s = self._policy.silent(self._where[request], node, now, now - sent)
        if wait_s > 0:
            heapq.heappush(self._events, (now + wait_s, _PATIENCE, node, request, sent, 0.0, 0.0))
        else:
            self._tried.setdefault(request, {})[node] = sent
            self._again(request, now)

    def _again(self, request: int, now: float) -> None:
        """Asks another node, unless that is too late or was done often enough."""
        tried = self._tried[request]
        if len(tried) >= ATTEMPTS or now - self._at[request] >= GIVE_UP_S:
            return
        other = self._pick(self._where[request], now, tried)
        if other >= 0:
            tried[other] = now
            self._extra += 1
            self._send(request, other, now)

    def _tick(self, now: float, *_: float) -> None:
        self._policy.tick(now)

    def _price(self, now: float, _: int, row: int, *__: float) -> None:
        self._usd_each[:] = self._known.usd[:] = self._world.usd_per_request[row].tolist()
        self._policy.changed(now)

    def _news(self, now: float, node: int, present: int, *_: float) -> None:
        self._known.present[node] = bool(present)
        self._policy.changed(now)

    def _power(self, now: float, node: int, up: int, *_: float) -> None:
        self._up[node] = bool(up)

    def _falls_ill(self, now: float, node: int, fault: int, *_: float) -> None:
        self._fault[node] = _FAULTS[fault]


def _settled(world: World) -> Iterator[_Event]:
    """What happens whoever routes."""
    for tick in range(1, math.ceil(world.duration_s / TICK_S)):
        yield tick * TICK_S, _TICK, 0, 0, 0.0, 0.0, 0.0
    for row, at_s in enumerate(world.price_since_s):
        if at_s > 0:
            yield float(at_s), _PRICE, 0, row, 0.0, 0.0, 0.0
    for gone in world.absences:
        yield gone.notice_s + NEWS_S, _NEWS, gone.node, 0, 0.0, 0.0, 0.0
        yield gone.off_s, _POWER, gone.node, 0, 0.0, 0.0, 0.0
        yield gone.on_s, _POWER, gone.node, 1, 0.0, 0.0, 0.0
        yield gone.on_s + NEWS_S, _NEWS, gone.node, 1, 0.0, 0.0, 0.0
    for trouble in world.troubles:
        yield trouble.start_s, _FAULT, trouble.node, _FAULTS.index(trouble.fault), 0.0, 0.0, 0.0
        yield trouble.end_s, _FAULT, trouble.node, 0, 0.0, 0.0, 0.0
