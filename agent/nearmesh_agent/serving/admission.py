"""Whether a request can still be answered in time, decided when it arrives. Pure functions.

Of the request's time on the node the waiting is predicted from the work ahead of it and the measured service times;
fluctuations of independent calls add up like the square root of their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nearmesh_agent.serving.queue import RequestQueue
from nearmesh_agent.serving.times import ServiceTimes

# How many mean deviations a prediction allows for: about the 95th percentile of a bell curve.
_DEVIATIONS = 2.0
# An answer still has to be written and to travel: this share of the time that is left, and no less than so long. When
# too many come too late all the same, more is set aside, up to the third number.
_RESERVE, _MIN_RESERVE_S, _MOST_RESERVE = 0.05, 0.001, 0.3
# One request in so many may be late; and how fast what is set aside grows with each that is.
_LATE_SHARE, _STEP = 0.01, 0.01
# Some 64 requests back, callers' habits are forgotten.
_LEAVING_ALPHA = 1 / 64


class Load(NamedTuple):
    """What stands between a request and an engine, at one moment."""

    instances: int
    # How soon the first busy instance should be free; 0 if one is.
    free_in_s: float
    # Rows that will be served before it, as far as can be expected.
    rows_ahead: float = 0


class Outcomes:
    """What became of the requests that were let in, and so what the next predictions have to allow for."""

    def __init__(self) -> None:
        # The share of a caller's time that is not counted on.
        self.reserve = _RESERVE
        # The share of requests that leave the queue before their turn: their callers gave up before their deadlines.
        self.leaving = 0.0

    def answered(self, left_s: float, timeout_s: float) -> None:
        """With `left_s` of `timeout_s` to spare for the way back; below 0 it was too late."""
        late = left_s < _RESERVE * timeout_s
        # Steps whose balance lies where one request in a hundred is late: a quantile followed by stochastic
        # approximation (Robbins and Monro, 1951).
        step = _STEP if late else -_STEP * _LATE_SHARE
        self.reserve = min(_MOST_RESERVE, max(_RESERVE, self.reserve + step))

    def waited(self, *, gave_up: bool) -> None:
        """One more request left the queue, for an engine or for good."""
        self.leaving += _LEAVING_ALPHA * (gave_up - self.leaving)


class Asking(Protocol):
    """What of a request decides whether there is time for it."""

    @property
    def rows(self) -> int: ...

    @property
    def priority(self) -> int: ...

    @property
    def deadline_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Hopeless:
    """Why a request should not come in."""

    why: str
    # When the same request could be answered in time; None if that depends on others.
    retry_after_s: float | None = None


def hopeless(
    request: Asking, queue: RequestQueue, times: ServiceTimes, load: Load, outcomes: Outcomes, *, now_s: float
) -> Hopeless | None:
    """Whether `request` would only wait for its deadline, or make others miss theirs, while another node may serve.

    `load` without the queue.
    """
    left_s = request.deadline_s - now_s
    most_s = usable_s(left_s, outcomes.reserve)
    everything = Load(load.instances, load.free_in_s, queue.rows + request.rows)
    if finish_s(everything, max(request.rows, queue.most_rows), times) <= most_s:
        # All that waits could be done before it is due, and whom it might overtake is due later still.
        return None
    ahead = queue.rows_ahead(request.priority, request.deadline_s)
    needed_s = finish_s(Load(load.instances, load.free_in_s, ahead * (1 - outcomes.leaving)), request.rows, times)
    if needed_s > most_s:
        why = f"it would take about {needed_s * 1000:.0f} ms, the request has {left_s * 1000:.0f} ms left"
        return Hopeless(why, needed_s - left_s)
    for other in queue.behind(request.priority, request.deadline_s):
        # Who is late without it loses nothing to it.
        without_s, with_s = (
            finish_s(Load(load.instances, load.free_in_s, rows), other.rows, times)
            for rows in (ahead, ahead + request.rows)
        )
        if without_s <= other.deadline_s - now_s < with_s:
            return Hopeless("another request with a later deadline would miss it")
        ahead += other.rows
    return None


def finish_s(load: Load, rows: int, times: ServiceTimes) -> float:
    """When the answer to a request of `rows` can be counted on, in seconds from now; 0 if nothing is known."""
    size = times.best
    calls = load.rows_ahead / size / load.instances
    wait_s = load.free_in_s + calls * times.mean_s(size)
    spread_s = _DEVIATIONS * times.deviation_s(size) * math.sqrt(1 + calls)
    return wait_s + times.mean_s(max(rows, min(size, rows + math.ceil(load.rows_ahead)))) + spread_s


def usable_s(timeout_s: float, reserve: float = _RESERVE) -> float:
    """What of the caller's time is left for waiting and computing."""
    return timeout_s - max(_MIN_RESERVE_S, reserve * timeout_s) if math.isfinite(timeout_s) else timeout_s
