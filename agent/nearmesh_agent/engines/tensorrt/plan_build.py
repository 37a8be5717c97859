"""Building a TensorRT plan from an ONNX file, in a process of its own: a builder may crash, or take minutes of a core.

Run as a module it is that process: the order comes as a line of JSON on its input, and its last line says what was
wrong. Its input stays open; when that ends, so did the agent, and the builder follows.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nearmesh.errors import EngineFailure
from nearmesh_agent.engines.tensorrt.shapes import Profile

# Names of the libraries' modules, by what model.toml calls them.
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# A build that takes longer than this is taken for hung; large networks need some tens of minutes.
TIMEOUT_S = 2 * 3600.0
# Requests come first; the builder gets the time that they leave.
_NICE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOrder:
    """What to build, and where to put it."""

    library: str
    onnx: str
    plan: str
    # "fp16", or "graph".
    precision: str = "graph"
    profile: Profile = field(default_factory=dict)


class PlanBuild:
    """One build. `run` belongs to one thread; `stop` may come from another, also before `run`."""

    def __init__(self, order: PlanOrder) -> None:
        self._order = order
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def run(self) -> None:
        """Blocks until the plan is there. Raises EngineFailure with the reason if it will not be."""
        with self._start() as process:
            assert process.stdout is not None
            too_long = threading.Timer(TIMEOUT_S, process.kill)
            too_long.daemon = True
            too_long.start()
            try:
                # Until it has ended. Its input stays open so long: the end of that would tell it to go.
                said = process.stdout.read()
                status = process.wait()
            finally:
                too_long.cancel()
        if status:
            raise EngineFailure(_what_went_wrong(status, said, stopped=self._stopped))

    def stop(self) -> None:
        """Ends the build; `run` then raises. Safe to repeat."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _start(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._stopped:
                raise EngineFailure("building was stopped")
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            process = self._process
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(asdict(self._order)) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            # It is dead already; its exit status tells more.
            pass
        return process


def _what_went_wrong(status: int, said: str, *, stopped: bool) -> str:
    if stopped:
        return "building was stopped"
    lines = said.strip().splitlines()
    why = lines[-1] if lines else f"it said nothing (at most {TIMEOUT_S:.0f} s are allowed)"
    return f"the builder was ended by signal {-status}: {why}" if status < 0 else f"building failed: {why}"


def build(order: PlanOrder) -> None:
    """In the process of its own. Raises EngineFailure."""
    try:
        trt = importlib.import_module(MODULES[order.library])
    except (ImportError, OSError) as error:
        raise EngineFailure(f"{order.library} cannot be loaded: {error}") from None
    said: list[str] = []
    logger = _logger(trt, said)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(order.onnx):
        raise EngineFailure("; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)))
    config = builder.create_builder_config()
    if order.precision == "fp16" and hasattr(trt.BuilderFlag, "FP16"):
        # Newer libraries know no such flag: there, a graph computes in the types that it is written in.
        config.set_flag(trt.BuilderFlag.FP16)
    _set_profile(builder, network, config, order.profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineFailure("; ".join(said) or "the builder gave no reason")
    Path(order.plan).write_bytes(plan)


def _set_profile(builder: Any, network: Any, config: Any, spans: Profile) -> None:
    """Spans for the inputs that have a free dimension; a network without any takes no profile."""
    profile, free = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tuple(tensor.shape):
            continue
        if tensor.name not in spans:
            raise EngineFailure(f"input {tensor.name!r} has free dimensions, and no shapes are known for it")
        profile.set_shape(tensor.name, *(tuple(part) for part in spans[tensor.name]))
        free = True
    if free:
        config.add_optimization_profile(profile)


def _logger(trt: Any, said: list[str]) -> Any:
    """Collects the library's errors."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.ERROR):
                said.append(" ".join(message.split()))

    return Logger()


def main() -> None:
    """The process: order in, plan on disk."""
    os.nice(_NICE)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_follow_the_agent, daemon=True).start()
    try:
        build(PlanOrder(**order))
    except EngineFailure as error:
        sys.stdout.write(f"{' '.join(error.message.split())}\n")
        sys.stdout.flush()
        os._exit(1)
    # Not through the interpreter's end, where the thread at the input would be in the way.
    os._exit(0)


def _follow_the_agent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
