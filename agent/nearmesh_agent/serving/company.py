"""Whether a call on the event loop should wait for more requests to share it. No clock: `now_s` is passed in.

Requests that one connection brought with one read come in the same turn of the loop, those of others in the turns after
it. So, with callers on many connections, a call that began at once would nearly always serve one of them alone.
"""

from __future__ import annotations

# Turns of the loop without a new request after which nobody else is on the way; some 0.02 ms in all.
PATIENCE = 4
# And no longer than this, however long the turns take.
PATIENCE_S = 0.002
# After a few calls without company, waiting is tried in 3 of so many calls.
_TRIED, _LONELY = 3, 64


class Company:
    """Of one replica."""

    def __init__(self) -> None:
        self._waiting = 0
        self._quiet_turns = 0
        self._since_s = 0.0
        # Calls in a row that one request had for itself.
        self._lonely = 0

    def expected(self, waiting: int, *, enough: bool, now_s: float) -> bool:
        """Asked once in each turn of the loop while `waiting` requests are there; False once the call should begin.

        `enough` says that a call could not take more.
        """
        if not self._waiting:
            self._since_s = now_s
        self._quiet_turns = self._quiet_turns + 1 if waiting == self._waiting else 0
        self._waiting = waiting
        patient = self._lonely % _LONELY < _TRIED
        if patient and not enough and self._quiet_turns < PATIENCE and now_s - self._since_s < PATIENCE_S:
            return True
        self._lonely = self._lonely + 1 if waiting <= 1 else 0
        self._waiting = self._quiet_turns = 0
        return False
