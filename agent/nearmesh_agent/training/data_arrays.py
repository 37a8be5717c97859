"""A site's data as a folder of arrays: train.npz and held_back.npz, or data.npz, which is then parted."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearmesh_agent.training.config import DataConfig
from nearmesh_agent.training.failures import DataError

Array = np.ndarray[Any, np.dtype[Any]]

INPUT, TARGET = "input.", "target"
TRAIN, HELD_BACK, WHOLE = "train.npz", "held_back.npz", "data.npz"


def read(config: DataConfig, inputs: Sequence[str]) -> list[tuple[dict[str, Array], Array]]:
    """Inputs by name and targets: of the whole, or of what is trained on and what is held back. Raises DataError."""
    assert config.path is not None
    files = _files(config.path)
    size = sum(_unpacked_bytes(file) for file in files)
    if size > config.largest_mib * 1024 * 1024:
        raise DataError(
            f"{config.path}: {size / 2**20:.0f} MiB of arrays, above largest_mib = {config.largest_mib} "
            "in [training.data]; raise it where memory allows"
        )
    return [_read(file, inputs) for file in files]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    pair = [path / TRAIN, path / HELD_BACK]
    there = [file for file in pair if file.is_file()]
    if len(there) == 1:
        raise DataError(f"{there[0]} is there, and {(set(pair) - set(there)).pop().name} beside it is missing")
    if there:
        return pair
    if (path / WHOLE).is_file():
        return [path / WHOLE]
    raise DataError(f"{path}: neither {TRAIN} and {HELD_BACK} nor {WHOLE} is there")


def _unpacked_bytes(file: Path) -> int:
    """As the archive's directory says, before anything of it is unpacked."""
    try:
        with zipfile.ZipFile(file) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: {error}") from None


def _read(file: Path, inputs: Sequence[str]) -> tuple[dict[str, Array], Array]:
    try:
        with np.load(file, allow_pickle=False) as found:
            names = inputs or [name.removeprefix(INPUT) for name in found.files if name.startswith(INPUT)]
            expected = [*(f"{INPUT}{name}" for name in names), TARGET]
            missing = [name for name in expected if name not in found.files]
            if missing or not names:
                said = ", ".join(missing) or f"{INPUT}NAME"
                raise DataError(f"{file}: no array {said}; it has {', '.join(found.files) or 'none'}")
            return {name: _rows(file, name, found[f"{INPUT}{name}"]) for name in names}, _rows(
                file, TARGET, found[TARGET]
            )
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: {error}") from None


def _rows(file: Path, name: str, array: Array) -> Array:
    if not array.ndim:
        raise DataError(f"{file}: {name} is a single number, expected a row for each example")
    return array
