"""`nearmesh model init`: from an ONNX file to a folder that passes `nearmesh model check`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nearmesh.errors import InvalidInput, PackageError
from nearmesh.ids import check_label
from nearmesh.package import MANIFEST_FILE, Package, parse
from nearmesh.packaging.init.describe import describe, name_of
from nearmesh.packaging.init.facts import Facts, load, read
from nearmesh.packaging.init.runtime import Array, Runner
from nearmesh.packaging.init.text import Named, write
from nearmesh.packaging.init.trial import Trial, try_out
from nearmesh.packaging.warmup import INPUT, OUTPUT, read_arrays, to_plain
from nearmesh.tensors import numpy_dtype

WARMUP_FILE = "warmup.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A package that was written."""

    folder: Path
    package: Package
    files: tuple[str, ...]
    opset: int
    hints: tuple[str, ...]


def init(
    file: Path, *, name: str | None = None, into: Path | None = None, inputs: Path | None = None, force: bool = False
) -> Made:
    """Writes model.toml, a warm-up and the weights into `into`, by default a folder of the model's name here.

    `inputs` is an .npz with an array input.NAME for each input, in place of made-up ones. With `force`, files of these
    names are written over. Raises PackageError, and then has written nothing.
    """
    facts = read(file)
    beside = _beside(file, facts)
    given = _given(facts, inputs) if inputs else None
    name = _checked(name_of(file.stem, file.resolve().parent.name, name))
    folder = into or Path(name)
    runner = Runner(file)
    outputs = [value.name for value in facts.outputs]
    trial = try_out(facts, lambda arrays: runner.run(arrays, outputs), given)
    described = describe(facts, trial)
    with tempfile.TemporaryDirectory(prefix="nearmesh-") as scratch:
        weights = _weights(Path(scratch), file, beside, name)
        named = Named(
            name=name,
            description=facts.description or f"What {file.name} computes",
            weights=next(iter(weights)),
            external=tuple(weights)[1:],
            warmup=WARMUP_FILE,
            origin=f"Made by `nearmesh model init` from {file.name}, opset {facts.opsets.get('', 0)}.",
        )
        files = weights | _own_files(Path(scratch), write(named, described), trial)
        package = parse(files[MANIFEST_FILE].read_text("utf-8"), str(folder / MANIFEST_FILE))
        _place(files, folder, force=force)
    return Made(
        folder=folder,
        package=package,
        files=tuple(sorted(files)),
        opset=facts.opsets.get("", 0),
        hints=described.hints,
    )


def _checked(name: str) -> str:
    try:
        return check_label("model", name)
    except InvalidInput as error:
        raise PackageError(f"{error.message}; give it one with --name") from None


def _given(facts: Facts, path: Path) -> dict[str, Array]:
    arrays = read_arrays(path)
    found: dict[str, Array] = {}
    for value in facts.inputs:
        array = arrays.get(INPUT + value.name)
        if array is None:
            raise PackageError(f"{path} has no array {INPUT}{value.name}; it has {', '.join(sorted(arrays))}")
        if value.dtype == "BYTES" and array.dtype.kind in "SU":
            array = (np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array).astype(object)
        elif array.dtype != numpy_dtype(value.dtype):
            raise PackageError(f"{path}: {INPUT}{value.name} is {array.dtype}, the graph takes {value.dtype}")
        found[value.name] = array
    return found


def _beside(file: Path, facts: Facts) -> dict[str, Path]:
    """The files that the graph leaves tensors to, by the names that it has for them. Raises PackageError."""
    beside = {location: file.parent / location for location in facts.external}
    if missing := [location for location, path in beside.items() if not path.is_file()]:
        raise PackageError(f"{file} keeps tensors in {missing[0]!r}, which is not beside it: copy that file too")
    return beside


def _weights(scratch: Path, file: Path, beside: Mapping[str, Path], name: str) -> dict[str, Path]:
    """The graph first, then what it leaves to other files."""
    graph = file.name if not file.name.startswith(".") else f"{name}.onnx"
    if all(len(PurePosixPath(location).parts) == 1 and not location.startswith(".") for location in beside):
        return {graph: file, **beside}
    # A package has no folders: what lies in some is gathered in one file.
    import onnx

    data = f"{Path(graph).stem}.data"
    model = load(file, with_external=True)
    onnx.save_model(model, str(scratch / graph), save_as_external_data=True, location=data, size_threshold=0)
    return {graph: scratch / graph, data: scratch / data}


def _own_files(scratch: Path, text: str, trial: Trial) -> dict[str, Path]:
    """The warm-up and model.toml."""
    arrays: Mapping[str, Any] = {
        **{INPUT + name: to_plain(name, array) for name, array in trial.inputs.items()},
        **{OUTPUT + name: to_plain(name, array) for name, array in trial.outputs.items()},
    }
    np.savez_compressed(scratch / WARMUP_FILE, allow_pickle=False, **arrays)
    (scratch / MANIFEST_FILE).write_text(text, "utf-8")
    return {name: scratch / name for name in (WARMUP_FILE, MANIFEST_FILE)}


def _place(files: Mapping[str, Path], folder: Path, *, force: bool) -> None:
    """Copies the files, model.toml last, so that a folder with one has all of it."""
    there = [name for name, path in files.items() if (folder / name).exists() and not _same(folder / name, path)]
    if there and not force:
        raise PackageError(f"{folder} has {', '.join(sorted(there))} already; --force writes over them")
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        if not _same(folder / name, path):
            draft = folder / f".{name}.draft"
            shutil.copyfile(path, draft)
            draft.replace(folder / name)


def _same(target: Path, path: Path) -> bool:
    """Whether it is that very file."""
    return target.exists() and target.samefile(path)
