"""The graph that rounds ended in, run as serving would run it, on what this site has held back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nearmesh.errors import NotInstalled
from nearmesh_agent.training.failures import Diverged, GraphError

Array = np.ndarray[Any, np.dtype[Any]]

# Rows of a call where the graph leaves their number open.
ROWS = 256
# What a site's arrays may be turned into without losing anything that matters to a judgement.
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class Candidate:
    """An ONNX file's bytes in a session of one thread."""

    def __init__(self, graph: bytes) -> None:
        """Raises GraphError, NotInstalled."""
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise NotInstalled("there is no ONNX Runtime: pip install 'nearmesh-agent[cpu]' or '...[gpu]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  # the runtime's own classes have no common one of a public name
            raise GraphError(f"ONNX Runtime does not load the candidate: {error}") from None
        self.inputs: list[str] = [one.name for one in self._session.get_inputs()]

    def outputs(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Of all rows, by the graph's outputs in order. Raises GraphError."""
        given = self._given(inputs)
        rows = len(next(iter(given.values())))
        parts = [self._run(given, begin, end) for begin, end in _pieces(rows, self._fixed() or ROWS)]
        return [np.concatenate(of_one) for of_one in zip(*parts, strict=True)]

    def _given(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if set(inputs) != set(self.inputs):
            raise GraphError(f"the graph takes {', '.join(self.inputs)}, and the data have {', '.join(inputs)}")
        return {one.name: _cast(one, inputs[one.name]) for one in self._session.get_inputs()}

    def _fixed(self) -> int:
        """How many rows a call has to have; 0: any number."""
        first = self._session.get_inputs()[0].shape[:1]
        return first[0] if first and isinstance(first[0], int) else 0

    def _run(self, given: Mapping[str, Array], begin: int, end: int) -> list[Array]:
        chosen = {name: array[begin:end] for name, array in given.items()}
        lacking = self._fixed() - (end - begin)
        if lacking > 0:
            chosen = {name: np.concatenate([array, *[array[-1:]] * lacking]) for name, array in chosen.items()}
        try:
            found = self._session.run(None, chosen)
        except Exception as error:  # noqa: BLE001  # as above
            raise GraphError(f"the candidate does not run on rows {begin} to {end}: {error}") from None
        return [np.asarray(one)[: end - begin] for one in found]


def difference(graph: Sequence[Array], framework: Sequence[Array]) -> float:
    """The largest between their numbers. Raises GraphError where they do not stand for the same, Diverged."""
    shapes = [[one.shape for one in outputs] for outputs in (graph, framework)]
    if shapes[0] != shapes[1]:
        raise GraphError(f"the graph's outputs are of {shapes[0]}, and the framework's of {shapes[1]}")
    pairs = zip(graph, framework, strict=True)
    found = max(float(np.abs(one.astype(np.float64) - other).max()) for one, other in pairs)
    if not np.isfinite(found):
        raise Diverged("the graph's outputs or the framework's are not finite")
    return found


def _cast(wanted: Any, array: Array) -> Array:
    dtype = _DTYPES.get(wanted.type)
    if dtype is None or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise GraphError(f"input {wanted.name!r} takes {wanted.type}, and the data are of {array.dtype}")
    return array.astype(dtype, copy=False)


def _pieces(rows: int, size: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, rows, size):
        yield begin, min(begin + size, rows)
