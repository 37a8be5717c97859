"""From facts and first answers to what model.toml says, with hints for what only the author knows."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nearmesh.errors import PackageError
from nearmesh.package import TensorSpec
from nearmesh.packaging.init.facts import Facts, Value
from nearmesh.packaging.init.rows import Rows
from nearmesh.packaging.init.runtime import OLDEST_OPSET, Array
from nearmesh.packaging.init.trial import Trial

# Words of names that say nothing of the model: its folder's may.
_GENERIC = {"model", "network", "net", "graph", "onnx", "weights", "export", "fp32", "fp16", "int8", "best", "last"}
_MOST_ROWS = 32
# "out" as a word of its own.
_OUT = re.compile(r"(?<![a-z])out(?![a-z])")
# Of the inputs and outputs of one call.
_CALL_BYTES = 64 * 1024 * 1024
# Outputs of so many values, at least two, may be scores of classes.
_MOST_LABELS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What model.toml says of a graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    # 0: no batch axis; a hint says why.
    max_batch: int
    rtol: float
    atol: float
    hints: tuple[str, ...]
    # What rounds of training could change; none where the weights are not in one file.
    parameters: tuple[str, ...] = ()


def describe(facts: Facts, trial: Trial) -> Description:
    """Pure: no file is read here."""
    batched = bool(trial.rows)
    names = _shared_names(facts, trial.rows)
    inputs = tuple(_spec(value, trial.inputs[value.name], trial.rows.inputs, names, batched) for value in facts.inputs)
    outputs = tuple(
        _spec(value, trial.outputs[value.name], trial.rows.outputs, names, batched) for value in facts.outputs
    )
    rtol, atol = tolerance(trial.outputs)
    return Description(
        inputs=inputs,
        outputs=outputs,
        max_batch=most_rows(trial) if batched else 0,
        rtol=rtol,
        atol=atol,
        hints=tuple(_hints(facts, trial)),
        parameters=() if facts.external else facts.parameters,
    )


def name_of(file: str, folder: str, given: str | None = None) -> str:
    """A model's name: `given`, or made of the file's, or of its folder's where the file's says nothing."""
    if given:
        return given
    for text in (file, folder):
        label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-")
        if label and not set(label.split("-")) <= _GENERIC:
            return label
    raise PackageError(f"neither {file!r} nor {folder!r} says what the model is: give it a name with --name")


def _spec(value: Value, array: Array, axes: Mapping[str, int], names: Sequence[str], batched: bool) -> TensorSpec:
    # Of an unknown rank, only what was seen is known: how many axes there are.
    dims = value.dims if value.dims is not None else (None,) * array.ndim
    called = tuple(dim if isinstance(dim, str) and dim in names else "" for dim in dims)
    return TensorSpec(
        name=value.name,
        dtype=value.dtype,
        shape=tuple(dim if isinstance(dim, int) else -1 for dim in dims),
        axes=called if any(called) else (),
        batch_axis=axes.get(value.name, 0) if batched else 0,
    )


def _shared_names(facts: Facts, rows: Rows) -> list[str]:
    """Names of dimensions, other than rows, that several inputs have: their sizes must agree."""
    found: Counter[str] = Counter()
    for value in facts.inputs:
        row_axis = rows.inputs.get(value.name, -1)
        found.update({dim for axis, dim in enumerate(value.dims or ()) if isinstance(dim, str) and axis != row_axis})
    return [name for name, times in found.items() if times > 1]


def most_rows(trial: Trial) -> int:
    """The largest power of two whose call is still small enough, 32 at most."""
    arrays = [*trial.inputs.values(), *trial.outputs.values()]
    count = max(trial.inputs[name].shape[axis] for name, axis in trial.rows.inputs.items() if axis >= 0)
    row_bytes = max(1, sum(array.nbytes for array in arrays) // count)
    return max(2, min(_MOST_ROWS, 1 << int(math.log2(max(1, _CALL_BYTES // row_bytes)))))


def tolerance(outputs: Mapping[str, Array]) -> tuple[float, float]:
    """rtol and atol of a warm-up: other machines round otherwise, the more the larger the numbers are."""
    floats = [array for array in outputs.values() if array.dtype.kind == "f"]
    largest = max((float(np.abs(array).max(initial=0)) for array in floats), default=0.0)
    coarse = any(array.dtype.itemsize < 4 for array in floats)
    power = max(0, math.ceil(math.log10(largest))) if largest > 1 else 0
    return (1e-2 if coarse else 1e-3), float(f"1e{power - (2 if coarse else 4)}")


def _hints(facts: Facts, trial: Trial) -> Iterator[str]:
    if trial.rows.why_not:
        yield f"requests are served one by one: {trial.rows.why_not}"
    opset = facts.opsets.get("", 0)
    if 0 < opset < OLDEST_OPSET:
        yield f"opset {opset} is older than any that ONNX Runtime promises to run ({OLDEST_OPSET}); export it anew"
    others = sorted(domain for domain in facts.opsets if domain not in ("", "ai.onnx.ml"))
    if others:
        yield f"operators of {', '.join(others)} may be unknown to other runtimes, such as TensorRT"
    for value in facts.inputs:
        for output in facts.outputs:
            if value.dtype == output.dtype and _follows(output.name, value.name):
                yield f"output {output.name!r} looks like the next {value.name!r}: if it is, see [sequence]"
    for value in facts.outputs:
        last = value.dims[-1] if value.dims else None
        if isinstance(last, int) and 1 < last <= _MOST_LABELS and value.dtype.startswith("FP"):
            yield f'if the {last} values of {value.name!r} are scores of classes, name them: labels = "labels.txt"'
            break


def _follows(output: str, value: str) -> bool:
    """As stateN follows state, h_out h_in, and present.0.key past.0.key."""
    after, before = output.lower(), value.lower()
    if after == before:
        return False
    earlier = (_OUT.sub("in", after), after.replace("present", "past"), re.sub(r"^(new|next)_", "", after))
    return before in earlier or after.startswith(before)
