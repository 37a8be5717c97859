"""TensorRT as an engine: ONNX Runtime answers until the plan is built, and whatever the plan cannot."""

from __future__ import annotations

import importlib
import logging
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nearmesh.errors import EngineFailure
from nearmesh_agent.engines.base import Array, Engine
from nearmesh_agent.engines.tensorrt.cuda import Gpu
from nearmesh_agent.engines.tensorrt.plan_build import MODULES, PlanBuild, PlanOrder
from nearmesh_agent.engines.tensorrt.plan_runner import PlanRunner
from nearmesh_agent.engines.tensorrt.plans import PlanKey, PlanStore

log = logging.getLogger(__name__)

# Begins as the names of all threads that load, which a process does not wait for when it ends.
THREAD = "engine-load-plan"


class Fallback(Engine, Protocol):
    """An engine that can always answer; as OnnxEngine."""

    @property
    def input_names(self) -> tuple[str, ...]: ...

    @property
    def output_names(self) -> tuple[str, ...]: ...

    @property
    def sessions(self) -> int: ...

    @property
    def detail(self) -> str: ...


class Runner(Protocol):
    """A plan, ready to run; as PlanRunner."""

    def takes(self, inputs: Mapping[str, Array]) -> bool: ...

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]: ...

    def close(self) -> None: ...


class Build(Protocol):
    """A build that has not run yet; as PlanBuild."""

    def run(self) -> None: ...

    def stop(self) -> None: ...


class PlanLibrary(Protocol):
    """TensorRT, or TensorRT for RTX, on this node's GPU."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def architecture(self) -> str: ...

    def build(self, order: PlanOrder) -> Build: ...

    def open(self, plan: bytes) -> Runner:
        """Raises EngineFailure for a plan that does not run here."""
        ...


@dataclass(frozen=True, slots=True)
class TensorRt:
    """The library, loaded, and the GPU."""

    name: str
    module: Any
    gpu: Gpu

    @classmethod
    def find(cls, name: str) -> TensorRt:
        """Raises EngineFailure, which says what is missing."""
        gpu = Gpu.first()
        try:
            return cls(name, importlib.import_module(MODULES[name]), gpu)
        except (ImportError, OSError) as error:
            raise EngineFailure(f"{name} cannot be loaded: {error}") from None

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def architecture(self) -> str:
        return self.gpu.architecture

    def build(self, order: PlanOrder) -> Build:
        return PlanBuild(order)

    def open(self, plan: bytes) -> Runner:
        return PlanRunner(self.module, plan, self.gpu)


@dataclass(frozen=True, slots=True)
class PlanSource:
    """Where an engine's plan comes from: the store, or a build for it."""

    key: PlanKey
    onnx: Path
    library: PlanLibrary
    store: PlanStore

    def stored(self) -> Runner | None:
        """The plan that an earlier start built. One that does not run here is discarded."""
        plan = self.store.get(self.key)
        if plan is None:
            return None
        try:
            return self.library.open(plan)
        except EngineFailure as error:
            log.warning("discarding a plan of model=%s: %s", self.onnx.name, error.message)
            self.store.discard(self.key)
            return None

    def order(self, plan: Path) -> PlanOrder:
        """To build it into the file `plan`."""
        return PlanOrder(
            library=self.library.name,
            onnx=str(self.onnx),
            plan=str(plan),
            precision=self.key.precision,
            profile=self.key.profile,
        )

    def keep(self, plan: bytes) -> Runner:
        """Opens a plan that was just built. It serves even if the disk will not have it."""
        runner = self.library.open(plan)
        try:
            self.store.put(self.key, plan)
        except (EngineFailure, OSError) as error:
            log.warning("the plan was not kept: %s", error)
        return runner


class TensorRtEngine:
    """ONNX Runtime's engine and, as soon as there is one, a plan; the switch is between two calls."""

    def __init__(self, fallback: Fallback, source: PlanSource | None, *, why_not: str = "") -> None:
        """Without a source ONNX Runtime serves for good, and `why_not` says why."""
        self._fallback, self._source = fallback, source
        self.variant = fallback.variant
        self.variant_why = ""
        self.opened_s: float | None = None
        # As many callers as ONNX Runtime takes; those beyond the plan's lanes wait for each other.
        self.instances = fallback.instances
        self.input_names, self.output_names = fallback.input_names, fallback.output_names
        self._runner: Runner | None = None
        # A plan that failed may still be running elsewhere; its memory is given back at the end.
        self._failed: Runner | None = None
        self._build: Build | None = None
        self._closed = False
        # For what happens once: the switch, a failure, `close`.
        self._lock = threading.Lock()
        self._why = "its plan is being built"
        if source is None:
            self._report(why_not)
        else:
            threading.Thread(target=self._get_ready, name=THREAD).start()

    @property
    def name(self) -> str:
        return self._fallback.name if self._runner is None else "tensorrt_plan"

    @property
    def providers(self) -> tuple[str, ...]:
        mine = () if self._source is None or self._runner is None else (self._source.library.name,)
        return (*mine, *self._fallback.providers)

    @property
    def sessions(self) -> int:
        """How many times the weights are in memory."""
        return self._fallback.sessions + sum(runner is not None for runner in (self._runner, self._failed))

    @property
    def detail(self) -> str:
        """Who answers, and why, for people."""
        if self._source is None or self._runner is None:
            return f"ONNX Runtime serves: {self._why}; {self._fallback.detail}"
        library, architecture = self._source.library, self._source.key.architecture
        return f"{library.name} {library.version} on {architecture}; other shapes: {self._fallback.detail}"

    def infer(self, inputs: Mapping[str, Array], *, alone: bool = False) -> dict[str, Array]:
        """As the engine's protocol says. What the plan does not take, or fails at, ONNX Runtime does."""
        runner = self._runner
        if runner is not None and runner.takes(inputs):
            try:
                found = runner.infer(inputs)
                return {name: found[name] for name in self.output_names}
            except EngineFailure as error:
                self._give_up(runner, error.message)
        return self._fallback.infer(inputs, alone=alone)

    def close(self) -> None:
        """Safe to repeat. A plan that is being built is not waited for."""
        with self._lock:
            self._closed = True
            build, runners = self._build, (self._runner, self._failed)
            self._runner = self._failed = None
        if build is not None:
            build.stop()
        for runner in runners:
            if runner is not None:
                _give_back(runner)
        self._fallback.close()

    def _get_ready(self) -> None:
        """In a thread of its own."""
        assert self._source is not None
        try:
            runner = self._source.stored() or self._built(self._source)
        except (EngineFailure, OSError) as error:
            # The disk, or a process that could not be started, fails a plan as a builder does.
            if not self._closed:
                self._report(error.message if isinstance(error, EngineFailure) else str(error))
            return
        with self._lock:
            closed = self._closed
            if not closed:
                self._runner = runner
        if closed:
            _give_back(runner)
        else:
            log.info("switched to its plan variant=%s: %s", self.variant, self.detail)

    def _built(self, source: PlanSource) -> Runner:
        log.info("building a plan variant=%s library=%s", self.variant, source.library.name)
        with tempfile.TemporaryDirectory(prefix="nearmesh-plan-") as scratch:
            target = Path(scratch) / "plan"
            build = source.library.build(source.order(target))
            with self._lock:
                if self._closed:
                    raise EngineFailure("the version was unloaded")
                self._build = build
            build.run()
            return source.keep(target.read_bytes())

    def _give_up(self, runner: Runner, why: str) -> None:
        """The plan is not used again; the first thread that saw it fail says so."""
        with self._lock:
            if self._runner is not runner:
                return
            self._runner, self._failed = None, runner
        self._report(f"its plan failed: {why}")

    def _report(self, why: str) -> None:
        self._why = why
        log.warning("ONNX Runtime serves in TensorRT's place variant=%s: %s", self.variant, why)


def _give_back(runner: Runner) -> None:
    """A GPU that is broken keeps its memory; the version goes all the same."""
    try:
        runner.close()
    except EngineFailure as error:
        log.warning("a plan's memory was not given back: %s", error.message)
