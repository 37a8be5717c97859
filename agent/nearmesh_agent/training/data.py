"""A site's data for one model: what recipes see of them, where they come from, and what is held back to judge by."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearmesh_agent.training import data_arrays, data_csv
from nearmesh_agent.training.config import DataConfig
from nearmesh_agent.training.failures import DataError

Array = np.ndarray[Any, np.dtype[Any]]

# Sets what is held back apart from other uses of a row's digest; another value would hold back other rows.
_SEED = b"nearmesh held back"
# What one's own function is: the table, and the names of the model's inputs.
Loader = Callable[[DataConfig, Sequence[str]], "SiteData"]


@dataclass(frozen=True, slots=True)
class Data:
    """Examples: row i of each input and of the targets belong together."""

    # By the name of the model's input; floats are float32.
    inputs: Mapping[str, Array]
    # Whole numbers are int64, others float32.
    targets: Array

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, chosen: Any) -> Data:
        """Those at positions, or of a slice."""
        return Data({name: array[chosen] for name, array in self.inputs.items()}, self.targets[chosen])


@dataclass(frozen=True, slots=True)
class SiteData:
    """What a site trains on, and what it judges by and never trains on."""

    train: Data
    held_back: Data


def load(config: DataConfig, inputs: Sequence[str] = ()) -> SiteData:
    """The site's data. `inputs` names the model's inputs, in order; empty: what the data call them.

    Raises DataError that names the file, the column and the row.
    """
    if config.loader:
        return _own(config, inputs)
    assert config.path is not None
    if config.format == "csv":
        if len(inputs) > 1:
            raise DataError(f"{config.path}: CSV makes one input, and the model has {len(inputs)}; write a `loader`")
        columns, targets = data_csv.read(config)
        parts = [Data({inputs[0] if inputs else data_csv.INPUT: columns}, targets)]
    else:
        parts = [Data(*found) for found in data_arrays.read(config, inputs)]
    parts = [_tidy(part, config, str(config.path)) for part in parts]
    return SiteData(*parts) if len(parts) == 2 else split(parts[0], config.held_back)


def split(data: Data, held_back: float) -> SiteData:
    """Holds back that part of the rows: those with the smallest digests, so that a row's fate is its own.

    Rows that are added or sorted otherwise change it for few, and equal rows share it: what judges a model was not
    trained on under another number. Raises DataError for fewer than two different rows.
    """
    digests = [_digest(data, row) for row in range(len(data))]
    different = sorted(set(digests))
    if len(different) < 2:
        raise DataError(f"{len(data)} rows, {len(different)} of them different, cannot be parted to train and to judge")
    bound = different[min(max(round(len(different) * held_back), 1), len(different) - 1)]
    held = np.array([digest < bound for digest in digests])
    return SiteData(data.rows(~held), data.rows(held))


def _digest(data: Data, row: int) -> bytes:
    found = hashlib.blake2b(_SEED, digest_size=8)
    for name in sorted(data.inputs):
        found.update(data.inputs[name][row].tobytes())
    found.update(data.targets[row].tobytes())
    return found.digest()


def _own(config: DataConfig, inputs: Sequence[str]) -> SiteData:
    """What the operator's own function gives, checked as files are."""
    module, _, name = config.loader.partition(":")
    try:
        loader: Loader = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(f"loader {config.loader!r}: {error}; expected package.module:function") from None
    found = loader(config, tuple(inputs))
    if not isinstance(found, SiteData):
        raise DataError(f"loader {config.loader!r} returned {type(found).__name__}, expected SiteData")
    return SiteData(*(_tidy(part, config, f"loader {config.loader!r}") for part in (found.train, found.held_back)))


def _tidy(data: Data, config: DataConfig, where: str) -> Data:
    """Rows that fit each other, finite numbers, and the dtypes that recipes rely on. Raises DataError."""
    rows = len(data.targets)
    if not rows:
        raise DataError(f"{where}: no examples")
    for name, array in data.inputs.items():
        if len(array) != rows:
            raise DataError(f"{where}: input {name!r} has {len(array)} rows, target {rows}")
    inputs = {name: _plain(array, f"{where}: input {name!r}") for name, array in data.inputs.items()}
    targets = _plain(data.targets, f"{where}: target")
    if config.target_above is not None:
        targets = (targets > config.target_above).astype(np.int64)
    elif np.issubdtype(targets.dtype, np.integer) or targets.dtype == np.bool_:
        targets = targets.astype(np.int64, copy=False)
    return Data(inputs, targets)


def _plain(array: Array, where: str) -> Array:
    if np.issubdtype(array.dtype, np.floating):
        finite = np.isfinite(array)
        if not finite.all():
            raise DataError(f"{where}, row {np.argwhere(~finite)[0][0]}: not a finite number")
        return array.astype(np.float32, copy=False)
    if not (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_):
        raise DataError(f"{where} is of {array.dtype}, expected numbers")
    return array
