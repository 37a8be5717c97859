"""An answer on a screen: small arrays in full, large ones in a few figures, scores with their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nearmesh.tensors import Array, datatype_of

# Above this many elements an array is summarised.
FULL_ELEMENTS = 64
TOP = 5
# Rows of scores (of a batch, or of a text) that are shown.
TOP_ROWS = 8
FIRST_VALUES = 6


def describe(name: str, array: Array, labels: Sequence[str] = ()) -> str:
    """One output in a few lines."""
    head = f"{name}  {datatype_of(array)} {list(array.shape)}"
    ranked = top(array, labels)
    if ranked:
        return "\n".join([head, *_top_lines(ranked)])
    if array.size <= FULL_ELEMENTS:
        return f"{head}\n{_in_full(array)}"
    return f"{head}\n{_summary(array)}"


def top(array: Array, labels: Sequence[str]) -> list[list[tuple[str, float]]]:
    """The best labels with their scores for each row; empty when the labels are not this output's."""
    if not labels or array.dtype.kind not in "fiu" or not array.shape or array.shape[-1] != len(labels):
        return []
    return [
        [(labels[index], float(row[index])) for index in np.argsort(-row.astype(np.float64), kind="stable")[:TOP]]
        for row in array.reshape(-1, len(labels))
    ]


def _top_lines(ranked: list[list[tuple[str, float]]]) -> list[str]:
    lines = [
        f"  {'row ' + str(number) + '  ' if len(ranked) > 1 else ''}"
        + ", ".join(f"{label!r} {score:.4g}" for label, score in row)
        for number, row in enumerate(ranked[:TOP_ROWS])
    ]
    more = len(ranked) - TOP_ROWS
    return [*lines, f"  and {more} more rows"] if more > 0 else lines


def _in_full(array: Array) -> str:
    shown = _readable(array) if array.dtype.kind == "O" else array
    text = np.array2string(shown, precision=4, suppress_small=True, max_line_width=100)
    return "\n".join(f"  {line}" for line in text.splitlines())


def _readable(array: Array) -> Array:
    found = np.empty(array.shape, dtype=object)
    for index, item in np.ndenumerate(array):
        found[index] = plain(item)
    return found


def _summary(array: Array) -> str:
    first = array.reshape(-1)[:FIRST_VALUES]
    if array.dtype.kind not in "fiu":
        return f"  begins with {', '.join(repr(plain(item)) for item in first)}"
    values = array.astype(np.float64)
    figures = f"min {values.min():.4g}, mean {values.mean():.4g}, max {values.max():.4g}"
    return f"  {figures}; begins with {', '.join(f'{item:.4g}' for item in first)}"


def to_json(array: Array, labels: Sequence[str] = ()) -> dict[str, Any]:
    """One output in full for a program; numbers that JSON has no word for are strings, as in protobuf's JSON."""
    found: dict[str, Any] = {
        "dtype": datatype_of(array),
        "shape": list(array.shape),
        "data": nested(array),
    }
    ranked = top(array, labels)
    if ranked:
        found["top"] = [[{"label": label, "score": plain(score)} for label, score in row] for row in ranked]
    return found


def nested(array: Array) -> Any:
    """The array as lists of plain values."""
    listed = array.tolist()
    if array.dtype.kind == "O" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        return _plain_lists(listed)
    return listed


def _plain_lists(value: Any) -> Any:
    return [_plain_lists(item) for item in value] if isinstance(value, list) else plain(value)


def plain(item: Any) -> Any:
    """One element: text for bytes, where they are text."""
    if isinstance(item, bytes):
        return item.decode("utf-8", "backslashreplace")
    if isinstance(item, float) and not math.isfinite(item):
        return "NaN" if math.isnan(item) else "Infinity" if item > 0 else "-Infinity"
    return item
