"""Who is let in to the queue of one engine: whoever there is time and room for. No clock: `now_s` is passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nearmesh.errors import Overloaded
from nearmesh_agent.serving.admission import Asking, Load, Outcomes, hopeless
from nearmesh_agent.serving.queue import Limits, RequestQueue, Waiting
from nearmesh_agent.serving.times import ServiceTimes

# Of each call that computes: when it began, and whose it is.
Running = Mapping[int, tuple[float, Sequence[Waiting]]]


class Entrance:
    """Looks at what the scheduler changes; the scheduler holds its lock around every call."""

    def __init__(
        self, queue: RequestQueue, running: Running, times: ServiceTimes, *, instances: int, limits: Limits, name: str
    ) -> None:
        self.outcomes = Outcomes()
        self._queue = queue
        self._running = running
        self._times = times
        self._instances = instances
        self._limits = limits
        self._name = name

    @property
    def idle(self) -> int:
        """Instances that do not compute."""
        return self._instances - len(self._running)

    def check(self, request: Asking, now_s: float) -> Waiting | None:
        """Whom the request would put out of a full queue, if anyone. Raises Overloaded if it must not come in itself.

        One that an idle instance can take at once always may.
        """
        if self.idle > len(self._queue):
            return None
        load = Load(self._instances, self._free_in_s(now_s))
        if without := hopeless(request, self._queue, self._times, load, self.outcomes, now_s=now_s):
            raise self.overloaded(without.why, retry_after_s=without.retry_after_s)
        # Those that an idle instance is about to take do not count.
        if len(self._queue) < self._limits.waiting + self.idle:
            return None
        last = self._queue.least_urgent()
        if last is None or last.priority <= request.priority:
            raise self.overloaded("as many as may")
        return last

    def _free_in_s(self, now_s: float) -> float:
        if self.idle > 0:
            return 0.0
        usual_s = self._times.mean_s(self._times.best)
        return max(0.0, min(began_s + usual_s - now_s for began_s, _ in list(self._running.values())))

    def overloaded(self, why: str, *, retry_after_s: float | None = None) -> Overloaded:
        """What a request is told that is not let in, or put out again."""
        if retry_after_s is None:
            size = self._times.best
            retry_after_s = self._queue.rows / size / self._instances * self._times.mean_s(size)
        return Overloaded(
            f"{len(self._queue)} requests wait for {self._name} on this node: {why}; try another node",
            retry_after_ms=max(1, round(retry_after_s * 1000)),
        )
