"""A stock client that asks a model of tests/bad_versions.py on schedule, and notes which version answered with what.

`python -m tests.faults.version_load --mesh FILE --region R --way gateway --model m --rate 25`. Prints
{"event": "ready"} after the first answer; then, for each line on stdin, {"event": "result"} with the calls since the
last one. Ends with its stdin.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearmesh.devmesh.ways import WAYS, Way

# At 25 a second this is five seconds of silence from every node.
WORKERS = 128
# What an app would give such a call.
TIMEOUT_S = 5.0
X = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One call. `started_s` is seconds since the epoch."""

    started_s: float
    ms: float
    # The version and its digest as the receipt names them, and what it added.
    version: str = ""
    digest: str = ""
    added: float = 0.0
    node: str = ""
    error: str = ""


def _ask(way: Way, model: str) -> Asked:
    started_s, started = time.time(), time.perf_counter()
    found: dict[str, Any] = {}
    try:
        reply = way.infer(model, {"x": np.array([X], np.float32)}, timeout_s=TIMEOUT_S)
        added = round(float(reply.outputs["y"][0]) - X, 3)
        found = {"version": reply.version, "digest": reply.digest, "added": added, "node": reply.node}
    except Exception as raised:  # noqa: BLE001  # whatever a client library raises counts as an error
        found = {"error": f"{type(raised).__name__}: {raised}"[:300]}
    return Asked(started_s=started_s, ms=(time.perf_counter() - started) * 1000, **found)


class _Load:
    """Asks on schedule whether earlier calls have ended or not."""

    def __init__(self, way: Way, model: str, rate: float) -> None:
        self._way, self._model, self._rate = way, model, rate
        self._pool = ThreadPoolExecutor(WORKERS)
        self._calls: list[Future[Asked]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self) -> None:
        start, number = time.monotonic(), 0
        while not self._stop.wait(max(0.0, start + number / self._rate - time.monotonic())):
            number += 1
            with self._lock:
                self._calls.append(self._pool.submit(_ask, self._way, self._model))

    def take(self) -> Sequence[Asked]:
        """Those that began since the last time, each with its end."""
        with self._lock:
            calls, self._calls = self._calls, []
        return [call.result() for call in calls]

    def end(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mesh", type=Path, required=True, help="mesh.json of a local mesh")
    parser.add_argument("--region", required=True)
    parser.add_argument("--way", choices=list(WAYS), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rate", type=float, default=25.0, help="calls a second")
    options = parser.parse_args()
    state = json.loads(options.mesh.read_text())
    bootstrap = Path(state["bootstrap"][options.region])
    os.environ["GRPC_XDS_BOOTSTRAP"] = str(bootstrap)
    way = WAYS[options.way](state["gateways"][options.region]["address"], bootstrap)
    first = _ask(way, options.model)
    if first.error:
        sys.exit(first.error)
    _say({"event": "ready"})
    load = _Load(way, options.model, options.rate)
    thread = threading.Thread(target=load.run)
    thread.start()
    for _ in sys.stdin:
        _say({"event": "result", "calls": [asdict(call) for call in load.take()]})
    load.end()
    thread.join()
    way.close()


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
