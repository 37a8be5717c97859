"""What a notice says, read with distrust: a node leaves for one that makes sense, and for nothing else. No clock."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from nearmesh.errors import InvalidInput

# Longer ones are no notice: the largest real one, a list of a cloud's events, has a few kilobytes.
MAX_BYTES = 64 * 1024
# A time that passed longer ago than this belongs to another boot, or a clock is wrong.
STALE_S = 60.0
# A node goes on serving until so long before the time that it was told.
LEAVE_AT_MOST_S = 3600.0
MAX_REASON_CHARACTERS = 120

_SECONDS = ("seconds", "left_s")
# What a service says that answers before there is anything to announce.
_NO_ACTIONS = ("", "none", "null", "false")


class NoNotice(InvalidInput):
    """What was found is not a notice that one may act on; the message says why not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """The machine is about to be taken away."""

    # For people.
    reason: str
    # Until then, seconds.
    left_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A notice as it was written down."""

    reason: str
    # When the machine goes, seconds since the epoch, by the clock of whoever wrote it.
    at_s: float


def judged(announced: Announced, *, now_s: float) -> Notice | None:
    """What it means now; None while its time is far off. Raises NoNotice for one whose time is long over."""
    left_s = announced.at_s - now_s
    if left_s < -STALE_S:
        raise NoNotice(
            f"{announced.reason!r} was due {-left_s:.0f} s ago: it is an old one, or a clock is wrong; remove it, or "
            "set the clock"
        )
    if left_s > LEAVE_AT_MOST_S:
        return None
    return Notice(reason=announced.reason, left_s=max(0.0, left_s))


def parse(content: bytes, *, written_s: float, default_s: float) -> Announced:
    """A notice in a file or from a plain URL: nothing, seconds, a time (ISO 8601), or JSON with "action" and "time" as
    AWS writes it, or with "seconds". Seconds count from when it was written; `default_s` where it gives none.

    Raises NoNotice.
    """
    text = decoded(content).strip()
    if not text:
        return Announced(reason="notice", at_s=written_s + default_s)
    if text[0] not in "{[":
        seconds = _number(text)
        at_s = instant(text) if seconds is None else written_s + seconds
        return Announced(reason="notice", at_s=at_s)
    found = loaded(text)
    if not found.keys() & {"time", *_SECONDS} and str(found.get("action") or "").strip().lower() in _NO_ACTIONS:
        raise NoNotice(f"JSON that names neither a time, nor seconds, nor an action: {text[:50]!r}")
    reason = said(found.get("reason") or found.get("action") or "notice")
    if "time" in found:
        return Announced(reason=reason, at_s=instant(found["time"]))
    given = next((found[key] for key in _SECONDS if key in found), default_s)
    seconds = _number(given)
    if seconds is None:
        raise NoNotice(f"{str(given)[:50]!r} is no number of seconds from 0 on")
    return Announced(reason=reason, at_s=written_s + seconds)


def decoded(content: bytes) -> str:
    """Raises NoNotice."""
    if len(content) > MAX_BYTES:
        raise NoNotice(f"more than {MAX_BYTES} bytes, which no notice has")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise NoNotice("bytes that are no text") from None


def loaded(text: str) -> dict[str, Any]:
    """A JSON object. Raises NoNotice."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NoNotice(f"no JSON ({str(error)[:100]}): {text[:50]!r}") from None
    if not isinstance(found, dict):
        raise NoNotice(f"JSON, but no object: {text[:50]!r}")
    return found


def instant(given: object) -> float:
    """Seconds since the epoch, of a time in ISO 8601 (UTC where it does not say) or as HTTP writes it.

    Raises NoNotice.
    """
    text = str(given).strip()[:50]
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        try:
            found = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            raise NoNotice(f"{text!r} is neither seconds nor a time such as 2026-01-31T12:00:00Z") from None
    try:
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        raise NoNotice(f"{text!r} is a time beyond all clocks") from None


def said(reason: object) -> str:
    """Words from outside for a log and a table: one line, not long."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(reason)[:1000]).split())
    return text[:MAX_REASON_CHARACTERS] or "notice"


def _number(given: object) -> float | None:
    """Seconds from 0 on."""
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        return None
    try:
        found = float(given)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and found >= 0 else None
