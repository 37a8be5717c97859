"""Whether a graph is the one that model.toml describes, before any request finds out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nearmesh.errors import PackageError
from nearmesh.package import Package, TensorSpec
from nearmesh_agent.engines.onnx.session import GraphTensor, Session


def check_graph(file: str, session: Session, package: Package) -> None:
    """Raises PackageError, which names `file`, the tensor and both sides, unless every request fits the graph."""
    for spec in package.inputs:
        _check_tensor(file, "input", spec, session.inputs | session.defaults)
    for spec in package.outputs:
        _check_tensor(file, "output", spec, session.outputs)
    missing = session.inputs.keys() - {spec.name for spec in package.inputs}
    if missing:
        raise PackageError(f"{file}: its inputs {sorted(missing)} are not in model.toml")


def _check_tensor(file: str, what: str, spec: TensorSpec, found: Mapping[str, GraphTensor]) -> None:
    tensor = found.get(spec.name)
    if tensor is None:
        raise PackageError(f"{file}: model.toml has the {what} {spec.name!r}, the graph has {sorted(found)}")
    if tensor.dtype != spec.dtype:
        raise PackageError(f"{file}: {what} {spec.name!r} is {spec.dtype} in model.toml, {tensor.dtype} in the graph")
    if not _fits(what, spec.shape, tensor.shape):
        raise PackageError(
            f"{file}: {what} {spec.name!r} has shape {list(spec.shape)} in model.toml, "
            f"{list(tensor.shape)} in the graph"
        )


def _fits(what: str, shape: Sequence[int], graph: Sequence[int | str | None]) -> bool:
    """Whether every input that model.toml allows is one that the graph takes; dimensions with a name take any size."""
    if not graph:
        # ONNX Runtime shows an unknown rank as it shows a scalar.
        return True
    if len(shape) != len(graph):
        return False
    fixed = [(dim, size) for dim, size in zip(shape, graph, strict=True) if isinstance(size, int)]
    if what == "output":
        return all(dim in (size, -1) for dim, size in fixed)
    return all(dim == size for dim, size in fixed)
