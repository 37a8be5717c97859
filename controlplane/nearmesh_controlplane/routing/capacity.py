"""How much of a node may be given away, and how long requests wait there then.

A node that is full is late. How full it may be depends on what it serves: many short calls at a time leave room for a
deadline even at a high load, one long call at a time does not. So each replica has a bound of its own, the utilization
at which it serves the most requests that are in time, and its times are those at that load: a choice made by the times
of an idle node would be wrong as soon as it was followed.

Waiting is that of a queue with several servers: with a chance C (Erlang's) a request waits, and then for an
exponential time of the rate k x mu x (1 - rho), corrected for service times that vary less than exponential ones (Allen
and Cunneen; Gross, Shortle, Thompson and Harris, Fundamentals of Queueing Theory, 4th edition, 2.3 and 5.2.4).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nearmesh.routing.objectives import IN_TIME
from nearmesh.routing.times import CELLS, LEVELS, points, share_within

Array = npt.NDArray[np.float64]

# Utilizations that are weighed against each other. Above the highest, a small error of a measurement makes a queue
# without end.
UTILIZATIONS = np.array([0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
# More servers than this queue no differently.
MAX_SERVERS = 256
_P50, _P95 = LEVELS.index(0.5), LEVELS.index(0.95)
_BISECTIONS = 30


def waiting(service: Array, per_s: Array, utilization: Array) -> tuple[Array, Array]:
    """The chance to wait at all, and the rate per ms at which those who do are served.

    `service` are quantiles in ms without waiting, shape (n, len(LEVELS)); `per_s`, shape (n,), is what a replica
    answers when it is never idle; `utilization` broadcasts with (n, 1). Both results: shape (n, m).
    """
    p50_ms = np.maximum(service[:, _P50], 1e-6)[:, None]
    # Little's law: what runs at a time when the replica is never idle.
    servers = np.clip(np.rint(per_s[:, None] * p50_ms / 1000), 1, MAX_SERVERS)
    spread = np.log(np.maximum(service[:, _P95], 1e-6)[:, None] / p50_ms) / 1.645
    variation = np.expm1(np.minimum(spread, 2.0) ** 2)
    chance = _erlang_c(servers, np.broadcast_to(utilization, (len(service), utilization.shape[-1])))
    rate = per_s[:, None] / 1000 * (1 - utilization) / np.maximum((1 + variation) / 2, 0.5)
    return chance, np.maximum(rate, 1e-9)


def _erlang_c(servers: Array, utilization: Array) -> Array:
    """The chance that all servers are busy, by Erlang's B and its recursion over the number of servers."""
    offered = servers * utilization
    blocked = np.ones_like(offered)
    for count in range(1, int(servers.max(initial=1)) + 1):
        going_on = offered * blocked / (count + offered * blocked)
        blocked = np.where(count <= servers, going_on, blocked)
    found: Array = blocked / (1 - utilization * (1 - blocked))
    return found


def soon_enough_ms(service: Array, chance: Array, rate: Array, level: float = IN_TIME) -> Array:
    """Service and waiting together take no longer than this in a share `level` of cases; shape of `chance`."""
    at = points(service)[:, None, :]
    low: Array = np.zeros_like(chance)
    high: Array = at[..., -1] + np.log(1 / (1 - level)) / rate + 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = _within(at, chance, rate, middle) >= level
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def _within(at: Array, chance: Array, rate: Array, limit_ms: Array) -> Array:
    """The share of service and waiting together that is within the limit. All broadcast; `at`, the points of the
    service alone, has one more axis."""
    limit = limit_ms[..., None]
    waited = np.exp(-np.maximum(limit - at, 0) * rate[..., None])
    found: Array = np.where(limit >= at, 1 - chance[..., None] * waited, 0.0) @ np.asarray(CELLS)
    return found


def bounds(service: Array, per_s: Array, slack_ms: Array, weight: Array) -> Array:
    """The utilization that each replica may have, shape (n,).

    `slack_ms`, shape (n, localities): what the network leaves of the deadline; `weight`, shape (localities,): how much
    each locality asks. The bound is where utilization x what is in time is largest; far localities that would leave a
    replica all but idle are given up for near ones, and nothing else is. Where nobody is surely in time, it is the
    chance that counts: a replica that is full is later still, and what it cannot take had better go to the next.
    """
    chance, rate = waiting(service, per_s, UTILIZATIONS[None, :])
    needed_ms = soon_enough_ms(service, chance, rate)
    served = (slack_ms[:, None, :] >= needed_ms[:, :, None]) @ weight
    late = ~served.any(axis=1)
    if late.any():
        waits = chance[late][:, :, None], rate[late][:, :, None]
        served[late] = _within(points(service[late])[:, None, None, :], *waits, slack_ms[late][:, None, :]) @ weight
    best = np.argmax(UTILIZATIONS * served, axis=1)
    found: Array = UTILIZATIONS[best]
    return found


def with_waiting(service: Array, per_s: Array, utilization: Array) -> Array:
    """The quantiles of service and waiting together at that utilization, shape (n, len(LEVELS))."""
    chance, rate = waiting(service, per_s, utilization[:, None])
    pieces = _PIECES_MS / rate
    starts = [service[:, [level]] + pieces for level in (0, _P50, -1)]
    grid = np.sort(np.concatenate([service, *starts], axis=1))
    shares = (1 - chance) * share_within(service[:, None, :], grid)
    for piece, part in enumerate(_PIECES):
        shares += chance * part * share_within(service[:, None, :], grid - pieces[:, piece : piece + 1])
    shares = np.maximum.accumulate(shares, axis=1)
    rows = [np.interp(LEVELS, share, ms) for share, ms in zip(shares, grid, strict=True)]
    found: Array = np.maximum.accumulate(np.array(rows).reshape(-1, len(LEVELS)), axis=1)
    return found


def _x_log_x(x: Array) -> Array:
    return np.where(x > 0, x * np.log(np.maximum(x, 1e-300)), 0.0)


# An exponential time of the mean 1 in pieces, finer towards its tail: how much of it each is, and its mean there.
_EDGES = np.array([0.0, 0.25, 0.5, 0.7, 0.85, 0.93, 0.97, 0.99, 0.997, 1.0])
_PIECES = np.diff(_EDGES)
_PIECES_MS = 1 + np.diff(_x_log_x(1 - _EDGES)) / _PIECES
