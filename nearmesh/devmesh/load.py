"""A steady open-loop load on one model through one way in, as a process of its own.

`python -m nearmesh.devmesh.load --help`. Prints a JSON line {"event": "ready"} after the first right answer, and at the
end one with every call. Calls start on schedule whether earlier ones have ended or not; an error is what the caller's
API raises, and nothing is tried again here. SIGTERM ends the load early, and the result is printed all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from nearmesh.devmesh.samples import (
    Sample,
    file_type_samples,
    text_detector_sample,
    text_recognizer_samples,
    voice_activity_sample,
)
from nearmesh.devmesh.ways import WAYS, Way
from nearmesh.rpc import NODE_KEY

# Calls that may be under way at once; at 20 a second this is twelve seconds of silence from every node.
WORKERS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call. `started_s` is seconds since the epoch, so that it can be held against what others did when."""

    started_s: float
    ms: float
    node: str = ""
    error: str = ""
    # The node, of a call that failed, whose answer had begun to come. Neither gRPC nor a gateway makes such a call
    # again; they do so only before the first byte of an answer.
    cut_off: str = ""
    # Why that node answered, where the way says so.
    why: str = ""
    # Which attempt was answered; 1 for the first, 0 when none was.
    attempt: int = 0
    # Sent to a second node because the first took longer than forecast.
    hedged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What one load process saw."""

    way: str
    model: str
    region: str
    rate: float
    # How many calls the schedule asked for by the time it ended, and all that were made.
    planned: int
    calls: Sequence[Call]

    @property
    def errors(self) -> list[str]:
        return [call.error for call in self.calls if call.error]

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> LoadResult:
        """What `main` printed."""
        return cls(**{**content, "calls": [Call(**call) for call in content["calls"]]})


def unary_sample(model: str) -> Sample:
    """An idempotent request to the model with a known answer."""
    makers = {
        "file-type": lambda: file_type_samples()[0],
        "text-detector": text_detector_sample,
        "text-recognizer": lambda: text_recognizer_samples()[0],
        "voice-activity": voice_activity_sample,
    }
    return makers[model]()


def run(
    way: Way, sample: Sample, *, rate: float, seconds: float, objective: str, timeout_s: float, stop: threading.Event
) -> tuple[int, list[Call]]:
    """The load itself: how many calls were planned, and each of them."""
    with ThreadPoolExecutor(WORKERS) as pool:
        futures: list[Future[Call]] = []
        start = time.monotonic()
        for number in range(int(rate * seconds)):
            if stop.wait(max(0.0, start + number / rate - time.monotonic())):
                break
            futures.append(pool.submit(_call, way, sample, objective, timeout_s))
        elapsed_s = min(time.monotonic() - start, seconds)
    return max(len(futures), int(elapsed_s * rate)), [future.result() for future in futures]


def _call(way: Way, sample: Sample, objective: str, timeout_s: float) -> Call:
    started_s, started = time.time(), time.perf_counter()
    node = error = cut_off = why = ""
    hedged, attempt = False, 0
    try:
        reply = way.infer(sample.model, sample.inputs, objective=objective, timeout_s=timeout_s)
        node, why, hedged, attempt = reply.node, reply.why, reply.hedged, reply.attempt
        sample.check(reply.outputs)
    except Exception as raised:  # noqa: BLE001  # whatever a client library raises counts as an error
        error = f"{type(raised).__name__}: {raised}"[:500]
        cut_off = _begun(raised)
    ms = (time.perf_counter() - started) * 1000
    return Call(
        started_s=started_s, ms=ms, node=node, error=error, cut_off=cut_off, why=why, attempt=attempt, hedged=hedged
    )


def _begun(raised: BaseException) -> str:
    """The node whose answer had begun to come when the call failed; "" if none had."""
    # tritonclient raises an error of its own in the course of gRPC's.
    found = raised if isinstance(raised, grpc.Call) else raised.__context__
    if not isinstance(found, grpc.Call):
        return ""
    return str(dict(found.initial_metadata() or ()).get(NODE_KEY, ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mesh", type=Path, required=True, help="mesh.json of a local mesh")
    parser.add_argument("--region", required=True)
    parser.add_argument("--way", choices=list(WAYS), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rate", type=float, default=20.0, help="calls a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--objective", default="")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="each call's own deadline")
    parser.add_argument("--calls", type=Path, help="a file for the calls, one a line; else they are in the result")
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    state = json.loads(options.mesh.read_text())
    bootstrap = Path(state["bootstrap"][options.region])
    os.environ["GRPC_XDS_BOOTSTRAP"] = str(bootstrap)
    way = WAYS[options.way](state["gateways"][options.region]["address"], bootstrap)
    sample = unary_sample(options.model)
    sample.check(way.infer(sample.model, sample.inputs, objective=options.objective, timeout_s=30.0).outputs)
    _say({"event": "ready"})
    planned, calls = run(
        way,
        sample,
        rate=options.rate,
        seconds=options.seconds,
        objective=options.objective,
        timeout_s=options.timeout_s,
        stop=stop,
    )
    way.close()
    if options.calls:
        options.calls.write_text("".join(json.dumps(asdict(call)) + "\n" for call in calls))
        calls = []
    result = LoadResult(
        way=options.way, model=options.model, region=options.region, rate=options.rate, planned=planned, calls=calls
    )
    _say({"event": "result", **asdict(result)})


def _say(event: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
