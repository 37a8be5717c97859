"""How long a SuperNode pauses before it looks again: for a message from the SuperLink, and for the answer of its app.

Flower's own 3 s between two looks for messages would be most of a short round, in which each site gets one every few
seconds. Here a pause is a part of what has been waited since the last message, so that a site is quick where messages
follow each other, and asks no more often than Flower's where it waits for others that train for long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# Between two looks for a message: so much of the time that was waited for it, and at most what Flower pauses.
PART = 0.05
LEAST_S = 0.25
# Of Flower's pauses, those from this length on are for messages; in the others an app's answer is waited for, in this
# process's own memory.
FOR_MESSAGES_S = 2.0
ANSWER_S = 0.1


class Pauses:
    """Stands where a module of Flower's has `time`."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        # Since when a message has been waited for; None: one is being worked on.
        self._since_s: float | None = None

    def sleep(self, seconds: float) -> None:
        """Instead of `seconds`, which say what for."""
        if seconds < FOR_MESSAGES_S:
            self._since_s = None
            self._sleep(min(seconds, ANSWER_S))
            return
        now_s = self._clock()
        self._since_s = now_s if self._since_s is None else self._since_s
        self._sleep(min(max(PART * (now_s - self._since_s), LEAST_S), seconds))

    def __getattr__(self, name: str) -> Any:
        """Whatever else Flower asks of `time`."""
        return getattr(time, name)


def of(module: Any) -> None:
    """Of a module of Flower's, which this makes pause so from now on."""
    module.time = Pauses()
