"""An engine that the test lets go on when it likes."""

from __future__ import annotations

import asyncio
import threading

import numpy as np

from nearmesh.errors import EngineFailure


class Gate:
    """An engine that doubles, once it is let; it notes each call's rows, and whether it was alone."""

    name, variant, providers = "gate", "fp32", ("CPUExecutionProvider",)

    def __init__(self, *, is_open=True, instances=1):
        self.open = threading.Event()
        if is_open:
            self.open.set()
        self.instances = instances
        self.closed = 0
        self.rows = []
        self.alone = []
        # Calls that are inside, and the most that ever were.
        self.inside = self.most_inside = 0
        self.running = threading.Semaphore(0)
        self._lock = threading.Lock()

    @property
    def calls(self):
        return len(self.rows)

    def infer(self, inputs, *, alone=False):
        with self._lock:
            self.rows.append(len(inputs["x"]))
            self.alone.append(alone)
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        self.running.release()
        try:
            assert self.open.wait(20)
            return self.compute(inputs)
        finally:
            with self._lock:
                self.inside -= 1

    def compute(self, inputs):
        if np.isnan(inputs["x"]).any():
            raise EngineFailure("not a number")
        return {"y": inputs["x"] * 2}

    def close(self):
        self.closed += 1

    async def entered(self):
        """Waits until one more call is inside."""
        assert await asyncio.to_thread(self.running.acquire, timeout=20)
