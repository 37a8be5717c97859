"""What the engine can do with nothing around it: ONNX Runtime in this process, without a request in sight.

`python -m benchmarks.serving.floors SETTINGS` prints one line of JSON. Two ways are tried with every batch: one session
with as many threads as the machine has cores, and as many sessions of one thread.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.figures import times
from benchmarks.serving.models import Arrays, load
from benchmarks.serving.processes import peak_bytes

BATCHES = (1, 2, 4, 8, 16, 32)
# A call of a large batch may be longer than the time it is given.
MIN_CALLS = 3


class Engine:
    """Sessions of one model that run at a time, each in a thread."""

    def __init__(self, weights: str, sessions: int, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._sessions = [
            onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"]) for _ in range(sessions)
        ]
        self._threads = threads

    def measure(self, inputs: Arrays, batch: int, seconds: float) -> dict[str, Any]:
        """Rows per second, and processor time of each."""
        feed = {name: _rows(array, batch) for name, array in inputs.items()}
        for session in self._sessions:
            session.run(None, feed)
        with ThreadPoolExecutor(len(self._sessions)) as pool:
            cpu, began = time.process_time(), time.perf_counter()
            parts = [pool.submit(_calls_ms, session, feed, began + seconds) for session in self._sessions]
            calls_ms = [call_ms for part in parts for call_ms in part.result()]
            elapsed, used = time.perf_counter() - began, time.process_time() - cpu
        rows = len(calls_ms) * batch
        return {
            "sessions": len(self._sessions),
            "threads": self._threads,
            "batch": batch,
            "per_s": rows / elapsed,
            "cpu_ms": used * 1000 / rows,
            **times(calls_ms),
        }


def _rows(array: np.ndarray, batch: int) -> np.ndarray:
    return np.take(array, range(batch), axis=0, mode="wrap")


def _calls_ms(session: onnxruntime.InferenceSession, feed: Arrays, until: float) -> list[float]:
    taken_ms: list[float] = []
    while len(taken_ms) < MIN_CALLS or time.perf_counter() < until:
        began = time.perf_counter()
        session.run(None, feed)
        taken_ms.append((time.perf_counter() - began) * 1000)
    return taken_ms


def measure(folder: str, weights: str, max_batch: int, seconds: float) -> dict[str, Any]:
    """Every way and batch, for so long each. The memory is that of the one session, in batches up to a server's."""
    inputs, _ = load(Path(folder))
    cores = len(os.sched_getaffinity(0))
    wide = Engine(weights, 1, cores)
    found = [wide.measure(inputs, batch, seconds) for batch in BATCHES if batch <= max_batch]
    memory = peak_bytes(os.getpid())
    found += [wide.measure(inputs, batch, seconds) for batch in BATCHES if batch > max_batch]
    # Idle threads of the first would spin into the second's time.
    del wide
    narrow = Engine(weights, cores, 1)
    found += [narrow.measure(inputs, batch, seconds) for batch in BATCHES]
    return {"ways": found, "peak_bytes": memory}


def main() -> None:
    print(json.dumps(measure(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
