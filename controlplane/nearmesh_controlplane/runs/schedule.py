"""When rounds of a run may begin: inside a window of the day, while the asked nodes are idle, while they are cheap.

More than one condition: all have to hold. A round that has begun ends, whatever the time is then.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from nearmesh.errors import InvalidInput

_MINUTE_S = 60
_DAY_MINUTES = 24 * 60
_DAY_S = _DAY_MINUTES * _MINUTE_S
_WINDOW = re.compile(r"([0-9]{1,2}):([0-9]{2})\s*-\s*([0-9]{1,2}):([0-9]{2})")


@dataclass(frozen=True, slots=True)
class Window:
    """A part of each day, in minutes after midnight, UTC; one that ends before it begins goes over midnight."""

    begin: int
    end: int

    def opens_in_s(self, now_s: float) -> float:
        """0 inside the window. `now_s` is since the epoch, whose days all have as many seconds."""
        into_day_s = now_s % _DAY_S
        since_begin_s = (into_day_s - self.begin * _MINUTE_S) % _DAY_S
        length_s = (self.end - self.begin) % _DAY_MINUTES * _MINUTE_S or _DAY_S
        return 0.0 if since_begin_s < length_s else _DAY_S - since_begin_s

    def __str__(self) -> str:
        return f"{_clock(self.begin)}-{_clock(self.end)} UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Schedule in run.proto, checked; the default lets rounds begin at any time."""

    window: Window | None = None
    # Of serving, 0 to 1; 0: whatever it uses.
    idle_below: float = 0.0
    # 0: whatever it costs.
    usd_per_hour_below: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNow:
    """What is known of a node that the run asks."""

    node: str
    # The part of it that serving uses, 1 and more where requests queue; None: it has not said.
    utilization: float | None
    # What it costs now; None, or below 0: nobody has said.
    usd_per_hour: float | None


@dataclass(frozen=True, slots=True)
class Wait:
    """Why the next round may not begin yet."""

    why: str
    # Not before this time, seconds since the epoch; None: nobody knows, it is looked at again.
    until_s: float | None = None


def parse(window: str = "", idle_below: float = 0.0, usd_per_hour_below: float = 0.0) -> Schedule:
    """Of what a caller asked for. Raises InvalidInput."""
    if not 0 <= idle_below <= 1:
        raise InvalidInput(
            f"idle below {idle_below:g} means nothing: it is a part of a node, such as 0.3, between 0 (any) and 1"
        )
    if not (usd_per_hour_below >= 0 and math.isfinite(usd_per_hour_below)):
        raise InvalidInput(f"a price below {usd_per_hour_below:g} USD an hour means nothing; 0 is any price")
    return Schedule(
        window=_window(window.strip()) if window.strip() else None,
        idle_below=idle_below,
        usd_per_hour_below=usd_per_hour_below,
    )


def wait(schedule: Schedule, nodes: Iterable[NodeNow], now_s: float) -> Wait | None:
    """Why the next round has to wait; None: it may begin now."""
    known = list(nodes)
    window, until_s = schedule.window, None
    reasons = []
    if window and (opens_in_s := window.opens_in_s(now_s)):
        until_s = now_s + opens_in_s
        reasons.append(f"its window {window} opens at {_moment(until_s)}")
    reasons += _not_idle(schedule.idle_below, known)
    reasons += _not_cheap(schedule.usd_per_hour_below, known)
    return Wait("; ".join(reasons), until_s) if reasons else None


def _not_idle(below: float, nodes: Iterable[NodeNow]) -> list[str]:
    if not below:
        return []
    return [
        f"{node.node} has not said yet how busy it is"
        if node.utilization is None
        else f"{node.node} is {node.utilization:.0%} busy with serving, and is to be below {below:.0%}"
        for node in nodes
        if node.utilization is None or not node.utilization < below
    ]


def _not_cheap(below: float, nodes: Iterable[NodeNow]) -> list[str]:
    if not below:
        return []
    return [
        f"nobody has said what {node.node} costs (nearmesh node price {node.node} USD_PER_HOUR does)"
        if node.usd_per_hour is None or node.usd_per_hour < 0
        else f"{node.node} costs {node.usd_per_hour:g} USD an hour, and is to cost less than {below:g}"
        for node in nodes
        if node.usd_per_hour is None or node.usd_per_hour < 0 or not node.usd_per_hour < below
    ]


def _window(text: str) -> Window:
    found = _WINDOW.fullmatch(text)
    if not found:
        raise InvalidInput(f"window {text[:40]!r} is not HH:MM-HH:MM in UTC, such as 22:00-06:00")
    begin, end = (_minutes(hours, minutes, text) for hours, minutes in (found.groups()[:2], found.groups()[2:]))
    if begin == end:
        raise InvalidInput(f"window {text!r} ends when it begins; for all day leave it out, or say 00:00-24:00")
    if begin == _DAY_MINUTES:
        raise InvalidInput(f"window {text!r} begins at 24:00; say 00:00")
    return Window(begin, end)


def _minutes(hours: str, minutes: str, text: str) -> int:
    found = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or found > _DAY_MINUTES:
        raise InvalidInput(f"window {text!r} has a time that no clock shows: {hours}:{minutes}")
    return found


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _moment(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
