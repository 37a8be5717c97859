"""Inputs from the command line as arrays: what stands after NAME= is a file or a value, the model says which dtype.

- FILE.npy, FILE.npz (the array NAME in it, or `input.NAME` as warm-up files have it, or the only one), FILE.json
- an image file, see `nearmesh.cli.images`
- a number, a string or a JSON array, written out
- for a BYTES input any other file (its contents), or any other text
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearmesh.cli.images import SUFFIXES as IMAGE_SUFFIXES
from nearmesh.cli.images import Scaling, read_image
from nearmesh.errors import InvalidInput
from nearmesh.tensors import Array, numpy_dtype


@dataclass(frozen=True, slots=True)
class Spec:
    """One input or output as the model's metadata describes it."""

    name: str
    datatype: str
    # -1 is a dimension of any size.
    shape: tuple[int, ...]


def split(given: Sequence[str], option: str) -> dict[str, str]:
    """NAME=TEXT of a repeated option. Raises InvalidInput."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals or not value:
            raise InvalidInput(f"{option} {text!r} is not NAME=VALUE")
        if name in found:
            raise InvalidInput(f"{option} {name!r} is given twice")
        found[name] = value
    return found


def pick(name: str, specs: Mapping[str, Spec], what: str) -> Spec:
    """The input or output of that name. Raises InvalidInput that names the nearest, or all."""
    if name not in specs:
        close = difflib.get_close_matches(name, specs, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(specs) or 'none'}"
        raise InvalidInput(f"the model has no {what} {name!r}; {hint}")
    return specs[name]


def read_input(text: str, spec: Spec, scaling: Scaling) -> Array:
    """The array for one input. Raises InvalidInput, ConfigError when an image cannot be read for lack of Pillow."""
    suffix = Path(text).suffix.lower()
    if suffix in IMAGE_SUFFIXES and spec.datatype != "BYTES":
        return read_image(Path(text), spec.name, spec.datatype, spec.shape, scaling)
    if suffix in (".npy", ".npz"):
        value: Any = _numpy_file(Path(text), spec)
    elif suffix == ".json":
        value = _json_file(Path(text))
    elif spec.datatype == "BYTES":
        value = _text(text)
    else:
        value = _inline(text, spec)
    return _with_batch_axis(_cast(value, spec), spec)


def _numpy_file(path: Path, spec: Spec) -> Array:
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return _member(path, found, spec) if isinstance(found, np.lib.npyio.NpzFile) else found
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise InvalidInput(f"{path}: not a NumPy file that can be read: {error}") from None


def _member(path: Path, archive: np.lib.npyio.NpzFile[Any], spec: Spec) -> Array:
    names = archive.files
    wanted = next((name for name in (spec.name, f"input.{spec.name}") if name in names), None)
    if wanted is None and len(names) == 1:
        wanted = names[0]
    if wanted is None:
        raise InvalidInput(f"{path} has no array {spec.name!r}; it has {', '.join(names) or 'none'}")
    return np.asarray(archive[wanted])


def _json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InvalidInput(f"{path}: not JSON: {error}") from None


def _text(text: str) -> Any:
    """A JSON list or string, the contents of a file, or the text as it is."""
    if text[0] in '["':
        try:
            return json.loads(text)
        except ValueError:
            return text
    path = Path(text)
    return path.read_bytes() if path.is_file() else text


def _inline(text: str, spec: Spec) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        kinds = f".npy, .npz, .json or an image ({', '.join(IMAGE_SUFFIXES)})"
        raise InvalidInput(
            f"input {spec.name!r} is {spec.datatype}: {text!r} is neither a number, a JSON array nor a file "
            f"that ends in {kinds}"
        ) from None


def _cast(value: Any, spec: Spec) -> Array:
    """The value in the model's dtype, unless that would change it. Raises InvalidInput."""
    dtype = numpy_dtype(spec.datatype, name=spec.name)
    if dtype.kind == "O":
        return _bytes_array(value, spec)
    try:
        array = np.asarray(value)
    except ValueError:
        raise InvalidInput(f"input {spec.name!r}: the lists in it differ in length, which makes no array") from None
    if array.dtype.kind not in "biuf":
        raise InvalidInput(f"input {spec.name!r} is {spec.datatype}; the value given is not made of numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        found = array.astype(dtype)
    if dtype.kind == "f":
        changed = bool((np.isfinite(array) & ~np.isfinite(found)).any())
    else:
        changed = not np.array_equal(found, array)
    if changed:
        raise InvalidInput(f"input {spec.name!r} is {spec.datatype}, which cannot hold every value given")
    return found


def _bytes_array(value: Any, spec: Spec) -> Array:
    items = np.array(value, dtype=object) if isinstance(value, list) else np.full((), value, dtype=object)
    if isinstance(value, np.ndarray):
        items = value.astype(object)
    found = np.empty(items.shape, dtype=object)
    for index, item in np.ndenumerate(items):
        if not isinstance(item, str | bytes):
            raise InvalidInput(f"input {spec.name!r} is BYTES; {item!r} is no text")
        found[index] = item.encode() if isinstance(item, str) else item
    return found


def _with_batch_axis(array: Array, spec: Spec) -> Array:
    """One item for a model that takes several; a lone value for a tensor of one element."""
    rank = len(spec.shape)
    if array.ndim == 0 and all(dim in (-1, 1) for dim in spec.shape):
        return array.reshape((1,) * rank)
    if array.ndim == rank - 1 and spec.shape[0] in (-1, 1):
        return array[None]
    return array
