"""`[[inputs]]` and `[[outputs]]`: what a model takes and gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from nearmesh.config import Problem, refuse

# Open Inference Protocol dtypes.
DType = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output."""

    # As in the graph, or as the steps name it.
    name: str
    # An Open Inference Protocol dtype; BYTES for text.
    dtype: DType
    # -1 is a dimension of any size.
    shape: tuple[int, ...]
    # An input that may be left out of a request; it then is all zeros, with 1 for each dimension of any size.
    optional: bool = False
    # Names of the dimensions, in order, "" for none: those that share a name have one size throughout a request.
    axes: tuple[str, ...] = ()
    # What fills an input up along a padded axis.
    pad_value: float = 0.0
    # Which axis counts rows, where the package batches. -1: none; requests that share a call must agree on the value.
    batch_axis: int = 0

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if any(dim < -1 for dim in self.shape):
            said = f"shape {list(self.shape)} of {self.name!r}: a dimension is 0 or more, or -1 for any"
            yield Problem(("shape",), said)
        if self.axes and len(self.axes) != len(self.shape):
            said = f"axes of {self.name!r}: {len(self.axes)} names for {len(self.shape)} dimensions"
            yield Problem(("axes",), said)
        if self.batch_axis < -1:
            said = f"batch_axis of {self.name!r} is {self.batch_axis}; expected an axis, or -1 for none"
            yield Problem(("batch_axis",), said)


def fits(shape: Iterable[int], expected: Iterable[int]) -> bool:
    """Whether sizes are those expected, where -1 on either side stands for any."""
    pairs = list(zip_longest(shape, expected))
    return all(None not in pair and (-1 in pair or pair[0] == pair[1]) for pair in pairs)
