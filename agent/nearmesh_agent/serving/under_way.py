"""What is known about one request while it is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nearmesh_agent.serving.queue import Answer
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.wire import Received


def first_attempt() -> int:
    """Of a call that says nothing of others before it."""
    return 1


# Neither is frozen: they are made for every request, and a frozen one takes three times as long to make.
@dataclass(slots=True)
class Call:
    """Times are of `time.perf_counter`."""

    request: Received
    started_s: float
    timeout_s: float | None
    # Who is to answer, as far as that is known.
    replica: Replica | None = None
    # When the standing version got it after another one had had its turn.
    handed_on_s: float = 0.0
    # Which attempt of its caller, or of a gateway for it, this is; looked up for a receipt alone.
    attempt: Callable[[], int] = first_attempt

    @property
    def begun_s(self) -> float:
        """When the replica that answers got it."""
        return self.handed_on_s or self.started_s

    def left_s(self, now_s: float) -> float | None:
        """Until its deadline; None if it has none."""
        return None if self.timeout_s is None else self.timeout_s - (now_s - self.started_s)


@dataclass(slots=True)
class Computed:
    """What the engine gave, still to be written."""

    answer: Answer
    # The outputs that the caller wants.
    names: list[str]
    # When the request was read, and when the engine had answered.
    decoded_s: float
    answered_s: float
