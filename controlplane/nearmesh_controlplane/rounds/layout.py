"""Parameters as one long vector of doubles, which updates are compared and clipped as, and back; and out of records.

A record comes from a site that may send anything. Its bytes become an array when their header says just the shape and
dtype that are expected, and there are as many as these need.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from flwr.app import Array, ArrayRecord

from nearmesh_controlplane.runs.folder import Arrays

Vector = np.ndarray

# How Flower says that the bytes are a .npy file.
_NPY = "numpy.ndarray"
# Such a file's header as NumPy writes it, versions 1 and 2. NumPy's own reader takes it for a piece of Python.
_HEADER = re.compile(
    rb"\x93NUMPY(?:\x01\x00..|\x02\x00....)\{'descr': '(?P<dtype>[<>|=]?[a-zA-Z][0-9]{1,2})', "
    rb"'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>(?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\), \} *\n",
    re.DOTALL,
)


class Unfit(Exception):
    """What a site sent is not what was asked for; says what of it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, shapes and dtypes of the parameters, in order."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]

    @classmethod
    def of(cls, arrays: Arrays) -> Layout:
        shapes = {name: array.shape for name, array in arrays.items()}
        return cls(shapes, {name: array.dtype for name, array in arrays.items()})

    def vector(self, arrays: Mapping[str, np.ndarray]) -> Vector:
        """Doubles, so that neither distances nor means lose anything."""
        parts = [np.asarray(arrays[name], np.float64).ravel() for name in self.shapes]
        return np.concatenate(parts) if parts else np.empty(0)

    def arrays(self, vector: Vector, *, doubles: bool = False) -> Arrays:
        """With their own dtypes, or as doubles."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes.values()])
        parts = np.split(vector, ends[:-1]) if len(ends) else []
        return {
            name: part.reshape(shape).astype(np.float64 if doubles else self.dtypes[name])
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def read(self, record: ArrayRecord) -> Arrays:
        """Raises Unfit."""
        if missing := self.shapes.keys() - record.keys():
            raise Unfit(f"{len(missing)} of {len(self.shapes)} parameters are missing, such as {min(missing)}")
        if unknown := record.keys() - self.shapes.keys():
            raise Unfit(f"{len(unknown)} parameters are unknown")
        return {name: self._array(name, record[name]) for name in self.shapes}

    def _array(self, name: str, array: Array) -> np.ndarray:
        shape, dtype = self.shapes[name], self.dtypes[name]
        found = _HEADER.match(array.data) if array.stype == _NPY else None
        if found is None:
            raise Unfit(f"{name} is no array")
        said_dtype, said_shape = found["dtype"].decode("ascii"), _shape(found["shape"])
        # Before anything of that size is made.
        if said_shape != shape or said_dtype != dtype.str:
            raise Unfit(f"{name} is {said_dtype} of shape {list(said_shape)[:8]}, not {dtype.str} of {list(shape)}")
        if len(array.data) - found.end() != int(np.prod(shape)) * dtype.itemsize:
            raise Unfit(f"{name} has not as many bytes as its shape needs")
        order: Literal["F", "C"] = "F" if found["fortran"] == b"True" else "C"
        return np.frombuffer(array.data, dtype, offset=found.end()).reshape(shape, order=order)


def _shape(text: bytes) -> tuple[int, ...]:
    return tuple(int(size) for size in text.replace(b" ", b"").split(b",") if size)


def record_of(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})
