"""An engine that the test lets go on when it likes."""

from __future__ import annotations

import asyncio
import threading

import numpy as np

from nearmesh.errors import EngineFailure


class Gate:
    """An engine that doubles, once it is let."""

    name, variant, providers, thread_safe = "gate", "fp32", ("CPUExecutionProvider",), True

    def __init__(self, *, is_open=True):
        self.open = threading.Event()
        if is_open:
            self.open.set()
        self.calls = 0
        self.closed = 0
        self.running = threading.Semaphore(0)

    def infer(self, inputs):
        self.calls += 1
        self.running.release()
        assert self.open.wait(20)
        if np.isnan(inputs["x"]).any():
            raise EngineFailure("not a number")
        return {"y": inputs["x"] * 2}

    def close(self):
        self.closed += 1

    async def entered(self):
        """Waits until one more call is inside."""
        assert await asyncio.to_thread(self.running.acquire, timeout=20)
