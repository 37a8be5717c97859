"""What of a package runs on this node, and how its engine calls share the node's cores. No runtime is imported here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nearmesh.errors import PackageError
from nearmesh.package import Package, Variant

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
# Providers that compute on a GPU.
GPU = frozenset({CUDA, TENSORRT, "NvTensorRTRTXExecutionProvider"})

# Engine calls at a time on a GPU: while one computes, the other's tensors are copied. More only wait for each other.
GPU_INSTANCES = 2


def choose_variant(
    package: Package, providers: Sequence[str], *, step: str = "", libraries: Collection[str] = ()
) -> Variant:
    """The first variant (of a pipeline's `step`), in the package's own order, whose hardware is among `providers`.

    A variant for TensorRT comes first only if its library is among `libraries`, those that this node can use; otherwise
    it comes last, since ONNX Runtime executes its file as well. Raises PackageError when there is none.
    """
    variants = [variant for variant in package.variants if variant.step == step]
    fitting = [variant for variant in variants if variant.hardware == "any" or variant.hardware in providers]
    if fitting:
        usable = (variant for variant in fitting if variant.engine == "onnxruntime" or variant.engine in libraries)
        return next(usable, fitting[0])
    wanted = ", ".join(f"{variant.name} ({variant.hardware})" for variant in variants)
    raise PackageError(
        f"no variant of {package.name!r} runs here: it has {wanted}; the node has {', '.join(providers)}"
    )


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
