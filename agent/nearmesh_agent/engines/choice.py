"""What of a package runs on this node, and how its engine calls share the node's cores. No runtime is imported here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nearmesh.errors import PackageError
from nearmesh.package import Package, Variant
from nearmesh.report import Report

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
# Providers that compute on a GPU.
GPU = frozenset({CUDA, TENSORRT, "NvTensorRTRTXExecutionProvider"})

# Engine calls at a time on a GPU: while one computes, the other's tensors are copied. More only wait for each other.
GPU_INSTANCES = 2


# How many times as fast as a variant another one has to be to be taken in its place: less could be the moment's doing,
# and what is made from another one is hardly ever as exact.
WORTH = 1.1


def candidates(
    package: Package,
    providers: Sequence[str],
    *,
    step: str = "",
    libraries: Collection[str] = (),
    without: Collection[str] = (),
) -> tuple[Variant, ...]:
    """The variants (of a pipeline's `step`) whose hardware is among `providers`: made ones, then given ones.

    A variant for TensorRT comes first only if its library is among `libraries`, those that this node can use; otherwise
    it comes last, since ONNX Runtime executes its file as well. Files of `without` are not to be had. Raises
    PackageError when there is none.
    """
    of_step = [v for v in (*package.made_variants, *package.variants) if v.step == step and v.file not in without]
    fitting = [variant for variant in of_step if variant.hardware in ("any", *providers)]
    if not fitting:
        wanted = ", ".join(f"{variant.name} ({variant.hardware})" for variant in of_step) or "none left"
        raise PackageError(
            f"no variant of {package.name!r} runs here: it has {wanted}; the node has {', '.join(providers)}"
        )
    return tuple(sorted(fitting, key=lambda variant: not _usable(variant, libraries)))


def _usable(variant: Variant, libraries: Collection[str]) -> bool:
    return variant.engine == "onnxruntime" or variant.engine in libraries


def to_compare(package: Package, found: Sequence[Variant], libraries: Collection[str]) -> tuple[Variant, ...]:
    """Those of the candidates whose speed decides: the reference first, if it is one of them.

    A plan that this node can build decides by itself: how fast it is shows only when it has been built.
    """
    if found[0].engine != "onnxruntime":
        return (found[0],)
    reference = package.reference(found[0].step).name
    ours = [variant for variant in found if variant.engine == "onnxruntime" or variant.engine not in libraries]
    return tuple(sorted(ours, key=lambda variant: variant.name != reference))


def is_worth(seconds: float, instead_of_s: float) -> bool:
    """Whether a variant that takes so long for a call is taken in the place of another one."""
    return seconds * WORTH <= instead_of_s


def why(chosen: str, seconds: Mapping[str, float], *, report: Report | None = None, step: str = "") -> str:
    """For people, why a variant was taken among those that were timed; `seconds` has each one's fastest call."""
    others = sorted((name for name in seconds if name != chosen), key=lambda name: seconds[name])
    if not others:
        return ""
    words = []
    for other in others:
        gain = seconds[other] / max(seconds[chosen], 1e-9)
        words.append(f"{gain:.1f} times as fast as {other} here" if gain >= WORTH else f"{other} is no faster here")
    return "; ".join(words) + _judged(chosen, report, step)


def _judged(chosen: str, report: Report | None, step: str) -> str:
    """What it scored, and of how much."""
    ours = report.of(chosen, step) if report else None
    reference = next((v for v in report.variants if v.step == step and v.agreement is None), None) if report else None
    if report is None or ours is None or reference is None or ours.metric is None or reference.metric is None:
        return ""
    name = report.metric.rpartition(":")[2]
    if ours is reference:
        return f", {name} {ours.metric:.3f}"
    return f", {name} {ours.metric:.3f} of {reference.metric:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How an ONNX Runtime engine uses the cores."""

    # Engine calls at a time.
    instances: int = 1
    # Cores of each call; 0: ONNX Runtime's own choice.
    threads: int = 0
    # Cores of a call that has the machine to itself; 0: such a call is as any other.
    wide: int = 0


def lay_out(
    providers: Sequence[str], cores: int, *, threads: int = 0, instances: int = 0, wide: bool | None = None
) -> Layout:
    """As many calls of one thread as there are cores have the best throughput; a lone call may take all cores.

    `threads` of a call and `instances` of the package are fixed by somebody who knows better, 0 for not. Then nothing
    is wide unless `wide` says so; None leaves that to this rule, False forbids it.
    """
    if GPU.intersection(providers):
        return Layout(instances=instances or GPU_INSTANCES, threads=threads or 1)
    fixed = bool(threads or instances)
    per_call = threads or (max(1, cores // instances) if instances else 1)
    wanted = not fixed if wide is None else wide
    return Layout(
        instances=instances or max(1, cores // per_call),
        threads=per_call,
        wide=cores if wanted and cores > per_call else 0,
    )
