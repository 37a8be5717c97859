"""TOML into frozen dataclasses: every key known, every value of the right type, every error naming the place.

A field may be str, int, float, bool, Path, PathOrUrl, a Literal, an optional of these, a nested dataclass, or a tuple
or dict of these. Relative paths are taken from the file's own folder.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from nearmesh.errors import ConfigError, MeshError

T = TypeVar("T")

# A path, or anything with "://" in it; empty is neither.
PathOrUrl = NewType("PathOrUrl", str)


def load(cls: type[T], path: Path) -> T:
    """Reads `path` into `cls`. Raises ConfigError that names the file, the key and the remedy."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse(cls, data, where=str(path), base=path.parent)


def parse(cls: type[T], data: Mapping[str, Any], *, where: str, base: Path) -> T:
    """Builds `cls` from a mapping; `where` stands at the head of every error. Raises ConfigError."""
    assert dataclasses.is_dataclass(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{_nearest(key, list(fields))}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}: {name}", base)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: key {name!r} is missing")
    try:
        return cls(**values)
    except MeshError as error:
        raise ConfigError(f"{where}: {error.message}") from None


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(sorted(known))}"


def _convert(kind: Any, value: Any, where: str, base: Path) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a table, got {value!r}")
        return parse(kind, value, where=where, base=base)  # type: ignore[arg-type]
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert(next(arg for arg in args if arg is not type(None)), value, where, base)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(args[0], item, f"{where}[{i}]", base) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a table, got {value!r}")
        return {key: _convert(args[1], item, f"{where}.{key}", base) for key, item in value.items()}
    return _scalar(kind, value, where, base)


def _scalar(kind: Any, value: Any, where: str, base: Path) -> Any:
    if kind is Path and isinstance(value, str):
        return base / Path(value).expanduser()
    if kind is PathOrUrl and isinstance(value, str):
        return PathOrUrl(value if not value or "://" in value else str(base / Path(value).expanduser()))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where}: expected {kind.__name__}, got {value!r}")
    # TOML knows nan and inf; no setting does, and nan slips through every comparison.
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, got {value!r}")
    return value
