"""A site's data as a CSV file: chosen columns of chosen rows make the model's one input, another column its target."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nearmesh_agent.training.config import DataConfig
from nearmesh_agent.training.failures import DataError

# What the input is called where nobody has said what the model calls it.
INPUT = "input"
# Cells that hold no value, as people write them.
EMPTY = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})

# Whole numbers below it are exact as float64.
EXACT = 2.0**53


def read(config: DataConfig) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Inputs, float32 of [rows, columns], and targets: int64 where all are whole numbers, else float32.

    Raises DataError that names the file, the column and the line.
    """
    assert config.path is not None
    path = config.path
    limit = config.largest_mib * 1024 * 1024
    inputs, targets = array("f"), array("d")
    try:
        if path.stat().st_size > limit:
            raise DataError(f"{path}: larger than largest_mib = {config.largest_mib} in [training.data]; raise it")
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line, row in _rows(path, csv.DictReader(file, strict=True), config):
                inputs.extend(_number(path, line, row, name, config.missing) for name in config.inputs)
                targets.append(_number(path, line, row, config.target, None))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from None
    if not targets:
        raise DataError(f"{path}: no row" + (f" where {_said(config.where)}" if config.where else ""))
    found = np.frombuffer(targets, np.float64)
    whole = bool((found == np.floor(found)).all() and np.abs(found).max() < EXACT)
    rows = np.frombuffer(inputs, np.float32).reshape(len(targets), len(config.inputs))
    return rows.copy(), found.astype(np.int64 if whole else np.float32)


def _rows(path: Path, reader: csv.DictReader[str], config: DataConfig) -> Iterator[tuple[int, dict[str, str]]]:
    columns = reader.fieldnames or ()
    for name in (*config.inputs, config.target, *config.where):
        if name not in columns:
            raise DataError(f"{path}: no column {name!r}; it has {', '.join(columns) or 'none'}")
    for row in reader:
        # Of a row with too many cells or too few, nobody knows which cell is which.
        if None in row or None in row.values():
            raise DataError(f"{path}, line {reader.line_num}: not {len(columns)} cells, as the header has")
        if all(row[name].strip() == value for name, value in config.where.items()):
            yield reader.line_num, row


def _number(path: Path, line: int, row: dict[str, str], column: str, missing: float | None) -> float:
    cell = row[column].strip()
    if cell.lower() in EMPTY:
        if missing is None:
            raise DataError(f"{path}, line {line}, column {column!r}: empty; `missing` says what it counts as")
        return missing
    try:
        found = float(cell)
    except ValueError:
        raise DataError(f"{path}, line {line}, column {column!r}: {cell[:40]!r} is not a number") from None
    if not math.isfinite(found):
        raise DataError(f"{path}, line {line}, column {column!r}: {cell[:40]!r} is not a finite number")
    return found


def _said(where: dict[str, str]) -> str:
    return " and ".join(f"{name} = {value!r}" for name, value in where.items())
