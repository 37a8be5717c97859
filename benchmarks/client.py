"""A client of one way, as a process of its own that stays warm while others are measured.

`python -m benchmarks.client WAY PLACE` says {"event": "ready", ...} once every model has answered rightly; then each
line on standard input, {"model", "callers", "seconds"}, is one measurement and is answered by one line. The end of the
input ends the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import times
from benchmarks.ways import Asked, Place, make
from nearmesh import tensors
from nearmesh.devmesh.load import unary_sample
from nearmesh.devmesh.plan import MODELS, node_of
from nearmesh.devmesh.samples import Sample
from nearmesh.quantiles import quantile

OBJECTIVE = "nearest"
TIMEOUT_S = 20.0
# Each caller of a measurement makes at least this many calls, so that a slow model has figures as well.
MIN_CALLS = 3


@dataclass(slots=True)
class _Seen:
    """What one caller, or several together, saw."""

    total_ms: list[float] = field(default_factory=list)
    node_ms: list[float] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)


class Measuring:
    """One way, and the samples that are sent through it."""

    def __init__(self, way: Asked, nearest: str) -> None:
        self._way = way
        self._nearest = nearest
        self._samples = {model: unary_sample(model) for model in MODELS}

    def sizes(self) -> dict[str, dict[str, int]]:
        """Asks every model once and checks the answer; bytes of each request and of the arrays that came back."""
        return {model: self._size(sample) for model, sample in self._samples.items()}

    def _size(self, sample: Sample) -> dict[str, int]:
        return {
            "request_bytes": tensors.encode_request(sample.model, sample.inputs).ByteSize(),
            "response_bytes": self._checked(sample),
        }

    def _checked(self, sample: Sample) -> int:
        """Raises WrongAnswer."""
        reply = self._way.infer(sample.model, sample.inputs, objective=OBJECTIVE, timeout_s=TIMEOUT_S)
        sample.check(reply.outputs)
        return sum(array.nbytes for array in reply.outputs.values())

    def measure(self, model: str, callers: int, seconds: float) -> dict[str, Any]:
        """One measurement: callers that each ask again at once. The checked call before it is not counted."""
        sample = self._samples[model]
        self._checked(sample)
        with ThreadPoolExecutor(callers) as pool:
            started = time.perf_counter()
            parts = [pool.submit(self._ask, sample, started + seconds) for _ in range(callers)]
            seen = [part.result() for part in parts]
            elapsed_s = time.perf_counter() - started
        total_ms = [ms for part in seen for ms in part.total_ms]
        return {
            "calls": len(total_ms),
            "elapsed_s": elapsed_s,
            **times(total_ms),
            "node_p50_ms": quantile(sorted(ms for part in seen for ms in part.node_ms), 0.5),
            "elsewhere": sum(node != self._nearest for part in seen for node in part.nodes if node),
        }

    def _ask(self, sample: Sample, until_s: float) -> _Seen:
        seen = _Seen()
        while len(seen.total_ms) < MIN_CALLS or time.perf_counter() < until_s:
            started = time.perf_counter()
            reply = self._way.infer(sample.model, sample.inputs, objective=OBJECTIVE, timeout_s=TIMEOUT_S)
            seen.total_ms.append((time.perf_counter() - started) * 1000)
            seen.node_ms.append(reply.service_ms)
            seen.nodes.append(reply.node)
        return seen


def main() -> None:
    name, text = sys.argv[1:]
    place = Place(**json.loads(text))
    # gRPC reads it once, when it is first used.
    os.environ["GRPC_XDS_BOOTSTRAP"] = place.bootstrap
    way = make(name, place)
    measuring = Measuring(way, node_of(place.region))
    _say({"event": "ready", "models": measuring.sizes()})
    for line in sys.stdin:
        _say({"event": "measured", **measuring.measure(**json.loads(line))})
    way.close()


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
