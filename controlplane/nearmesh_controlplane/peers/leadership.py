"""Which of several control planes decides: a lease in their database, held by one at a time.

Whoever holds the lease renews it every second; whoever finds it expired, by the database's clock, takes it over, and
the term grows. A leader counts its own time from before it asked for the renewal, and stops sooner than the database
lets another one begin: so there is at most one that acts, whatever was delayed, frozen or cut off between the two. What
it writes is refused besides once its term is over (`Database.run_as_leader`).

Pure: `now_s` is of any clock that runs evenly, goes on while the machine sleeps, and never goes back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nearmesh.errors import InvalidInput

# A lost leader is replaced within the lease and one look of another: less than 5 s. Longer than the short absences of a
# loaded process, which would move the leadership for nothing.
LEASE_S = 3.0
RENEW_EVERY_S = 1.0
# A leader stops this much sooner than its lease ends: clocks of two machines run unevenly by less than a thousandth,
# and a call that was begun in time may take a moment to be answered.
MARGIN_S = 0.5
# How often a lease that others hold is looked at: it may have been given back.
LOOK_EVERY_S = 1.0
# An expired lease is asked for at once; this keeps two that ask for the same one from a race without end.
AGAIN_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds the lease, as the database said."""

    id: str
    # What tells a process from the one before under the same id.
    incarnation: str
    term: int
    # By the database's clock; below 0 when the lease has expired.
    left_s: float


class Leadership:
    """What one control plane knows of the lease."""

    def __init__(self, incarnation: str, lease_s: float = LEASE_S, margin_s: float = MARGIN_S) -> None:
        if not 0 <= margin_s < lease_s:
            raise InvalidInput(f"a margin of {margin_s} s leaves nothing of a lease of {lease_s} s")
        self._me = incarnation
        self.lease_s = lease_s
        self._margin_s = margin_s
        self._until_s = -math.inf
        self._term = 0
        self._next_s = -math.inf
        # Whom the database named last; None before the first answer.
        self.holder: Holder | None = None

    def term(self, now_s: float) -> int:
        """The term in which this control plane acts; 0 when it does not."""
        return self._term if now_s < self._until_s else 0

    def told(self, holder: Holder, *, asked_at_s: float, now_s: float) -> None:
        """Takes over the database's answer to a claim that was sent at `asked_at_s`."""
        self.holder = holder
        if holder.incarnation == self._me:
            self._term = holder.term
            # Answers may come late, never out of order: one claim is under way at a time.
            self._until_s = max(self._until_s, asked_at_s + self.lease_s - self._margin_s)
            self._next_s = asked_at_s + RENEW_EVERY_S
        else:
            self._until_s = -math.inf
            self._next_s = now_s + min(max(holder.left_s, 0.0) + AGAIN_S, LOOK_EVERY_S)

    def unanswered(self, now_s: float) -> None:
        """The database did not answer; what was held is held until its time is over."""
        self._next_s = now_s + AGAIN_S

    def given_up(self) -> None:
        """Stops acting at once: the process ends."""
        self._until_s = -math.inf

    def next_claim_in_s(self, now_s: float) -> float:
        """How long to wait before the lease is asked for again."""
        return max(0.0, self._next_s - now_s)
