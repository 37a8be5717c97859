"""The factory that gives each package the engine that fits it and the node: ONNX Runtime's, TensorRT's, a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnxruntime

from nearmesh.errors import EngineFailure, PackageError
from nearmesh.package import Package, Step, Variant
from nearmesh.report import Report
from nearmesh_agent.engines.base import Engine
from nearmesh_agent.engines.choice import CPU, TENSORRT, Layout, candidates, lay_out, to_compare
from nearmesh_agent.engines.cores import usable_cores
from nearmesh_agent.engines.onnx.engine import OnnxEngine
from nearmesh_agent.engines.onnx.session import Provider
from nearmesh_agent.engines.pipeline.graph_step import Graph
from nearmesh_agent.engines.pipeline.pipeline import Pipeline
from nearmesh_agent.engines.pipeline.retrieve_step import Retriever
from nearmesh_agent.engines.tensorrt.cuda import Gpu
from nearmesh_agent.engines.tensorrt.engine import PlanLibrary, PlanSource, TensorRt, TensorRtEngine
from nearmesh_agent.engines.tensorrt.plans import MOST_BYTES, PlanKey, PlanStore, file_sha256, precision_of
from nearmesh_agent.engines.tensorrt.shapes import (
    Profile,
    package_profile,
    provider_shapes,
    step_profile,
    warmup_shapes,
)

_NO_FOLDER = "this node has no folder for plans"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxEngines:
    """An EngineFactory: loads the variants that it is told, or a package's first that this node's providers can run."""

    # By step ("" for a package without), the variant that is loaded, whatever hardware it says it is for.
    variants: Mapping[str, str] = field(default_factory=dict)
    # Execution providers, best first; each must be there. The CPU runs what the others cannot.
    providers: tuple[str, ...] = (CPU,)
    # Cores for one engine call; 0: one, with as many calls at a time as there are cores.
    threads: int = 0
    # Whether lone requests may get a second session with all cores, if it pays; the weights are then in memory twice.
    # None: where neither `threads` nor the package's `instances` fix how cores are shared.
    wide: bool | None = None
    # Whether packages may bring functions of their own, which run in this process with its rights.
    allow_python: bool = True
    # Finds passages for steps that retrieve. None: they give their sample.
    retriever: Retriever | None = None
    # The folder of TensorRT's plans. None: none are built, and ONNX Runtime serves their variants.
    plans: Path | None = None
    # What that folder may take.
    plans_bytes: int = MOST_BYTES
    # Finds TensorRT by model.toml's name of it. Raises EngineFailure, which says what is missing.
    find_library: Callable[[str], PlanLibrary] = TensorRt.find

    def __call__(self, folder: Path, package: Package) -> Engine:
        if package.steps:
            graph = partial(self.graph, folder, package)
            return Pipeline.load(folder, package, graph, allow_python=self.allow_python, retriever=self.retriever)
        return self._load(folder, package)

    def graph(self, folder: Path, package: Package, step: Step) -> Graph:
        """The graph of a pipeline's step, by its own names of tensors. Raises as `OnnxEngine.load`."""
        return self._load(folder, package, step)

    def _load(self, folder: Path, package: Package, step: Step | None = None) -> OnnxEngine | TensorRtEngine:
        libraries = self._libraries(package)
        variant = self._variant(folder, package, step.name if step else "", libraries)
        path, planned = folder / variant.file, variant.engine != "onnxruntime"
        engine = OnnxEngine.load(
            path,
            None if step else package,
            variant=variant.name,
            providers=self._with_options(path, variant, None if step else package),
            layout=self._layout(package, planned=planned),
        )
        if not planned:
            return engine
        try:
            profile = step_profile(engine.inputs, step.max_rows) if step else _profile(folder, package)
            source = self._source(path, variant, libraries[variant.engine], profile)
        except EngineFailure as error:
            return TensorRtEngine(engine, None, why_not=error.message)
        return TensorRtEngine(engine, source)

    def options(self, folder: Path, package: Package, step: str = "") -> tuple[Variant, ...]:
        """What may be loaded of a step, the reference first; among several, speed decides. Raises PackageError."""
        usable = _usable(self._libraries(package))
        found = candidates(package, self.providers, step=step, libraries=usable, without=not_to_be_had(folder, package))
        return to_compare(package, found, usable)

    def _variant(
        self, folder: Path, package: Package, step: str, libraries: Mapping[str, PlanLibrary | str]
    ) -> Variant:
        told = self.variants.get(step)
        if told is None:
            without = not_to_be_had(folder, package)
            return candidates(package, self.providers, step=step, libraries=_usable(libraries), without=without)[0]
        there = [v for v in (*package.made_variants, *package.variants) if v.step == step]
        for variant in there:
            if variant.name == told:
                return variant
        names = ", ".join(variant.name for variant in there)
        raise PackageError(
            f"{package.name!r} has no variant {told!r}{f' of step {step!r}' if step else ''}, but {names}"
        )

    def _libraries(self, package: Package) -> dict[str, PlanLibrary | str]:
        """Those that the package's variants name, or why this node cannot use them."""
        found: dict[str, PlanLibrary | str] = {}
        variants = (*package.made_variants, *package.variants)
        for name in {variant.engine for variant in variants} - {"onnxruntime"}:
            try:
                found[name] = self.find_library(name)
            except EngineFailure as error:
                found[name] = error.message
        return found

    def _layout(self, package: Package, *, planned: bool) -> Layout:
        # A plan is what makes lone requests fast; until it is there, its builder needs the cores.
        wide = False if planned else self.wide
        return lay_out(self.providers, usable_cores(), threads=self.threads, instances=package.instances, wide=wide)

    def _source(self, path: Path, variant: Variant, library: PlanLibrary | str, profile: Profile) -> PlanSource:
        if isinstance(library, str):
            raise EngineFailure(library)
        if self.plans is None:
            raise EngineFailure(_NO_FOLDER)
        key = PlanKey(
            onnx_sha256=file_sha256(path),
            architecture=library.architecture,
            library=library.name,
            version=library.version,
            precision=precision_of(variant.name),
            profile=profile,
        )
        return PlanSource(key, path, library, PlanStore(self.plans, most_bytes=self.plans_bytes))

    def _with_options(self, path: Path, variant: Variant, package: Package | None) -> list[Provider]:
        """The providers; TensorRT's, which ONNX Runtime brings, keeps what it built where our own plans are."""
        if TENSORRT not in self.providers or self.plans is None:
            return list(self.providers)
        profile = _profile_or_none(path.parent, package)
        key = PlanKey(
            onnx_sha256=file_sha256(path),
            architecture=_architecture(),
            library="onnxruntime",
            version=onnxruntime.__version__,
            precision=precision_of(variant.name),
            profile=profile,
        )
        kept = PlanStore(self.plans, most_bytes=self.plans_bytes).provider_folder(key)
        options = tensorrt_options(key, kept)
        return [(name, options) if name == TENSORRT else name for name in self.providers]


def not_to_be_had(folder: Path, package: Package) -> set[str]:
    """Files of variants that this version came without, and of those made ones that nobody has found good enough.

    Raises PackageError for a report that cannot be read.
    """
    report = Report.read(folder)
    passed = {v.label for v in report.variants if v.passed} if report else set()
    made = {
        variant.file
        for variant in package.made_variants
        if (f"{variant.step}:{variant.name}" if variant.step else variant.name) not in passed
    }
    # Without a report nothing was left out: a file that is missing is a mistake, and is named when it is opened.
    gone = {v.file for v in (*package.made_variants, *package.variants) if report and not (folder / v.file).exists()}
    return made | gone


def _usable(libraries: Mapping[str, PlanLibrary | str]) -> list[str]:
    return [name for name, library in libraries.items() if not isinstance(library, str)]


def tensorrt_options(key: PlanKey, folder: Path) -> dict[str, str]:
    """Of ONNX Runtime's TensorRT provider: a later start finds in `folder` what this one builds."""
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": "1" if key.precision == "fp16" else "0",
        **provider_shapes(key.profile),
    }


def _profile(folder: Path, package: Package) -> Profile:
    return package_profile(package, warmup_shapes(folder, package))


def _profile_or_none(folder: Path, package: Package | None) -> Profile:
    """Empty where shapes are not known before requests show them; ONNX Runtime's provider copes, if slowly."""
    if package is None:
        return {}
    try:
        return _profile(folder, package)
    except EngineFailure:
        return {}


def _architecture() -> str:
    try:
        return Gpu.first().architecture
    except EngineFailure:
        return "none"
