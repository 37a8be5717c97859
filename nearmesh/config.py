"""TOML into frozen dataclasses: every key known, every value of the right type, every error naming the line and place.

A field may be str, int, float, bool, Path, PathOrUrl, a Literal, an optional of these, a nested dataclass, or a tuple
or dict of these. Relative paths are taken from the file's own folder. All that is wrong with a file is told at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from nearmesh.errors import ConfigError, InvalidInput, MeshError
from nearmesh.toml_lines import At, Lines

T = TypeVar("T")

# A path, or anything with "://" in it; empty is neither.
PathOrUrl = NewType("PathOrUrl", str)

# As tomllib ends its messages.
_SYNTAX_PLACE = re.compile(r" \(at line (\d+), (column \d+)\)$")

# In place of a value that is wrong, while the others are looked at.
_WRONG: Any = object()


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and the keys that lead to it from the table that it was found in."""

    at: At
    message: str


class Invalid(InvalidInput):
    """All that is wrong with the values of one table, each with its key: a dataclass may raise it as it is made."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problem.message for problem in self.problems))


def refuse(problems: Iterable[Problem]) -> None:
    """Raises Invalid if there are any."""
    if found := tuple(problems):
        raise Invalid(found)


def load(cls: type[T], path: Path) -> T:
    """Reads `path` into `cls`. Raises ConfigError that names the file, the lines, the keys and the remedies."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse_text(cls, text, where=str(path), base=path.parent)


def parse_text(cls: type[T], text: str, *, where: str, base: Path) -> T:
    """Builds `cls` from TOML; `where` heads each error. Raises ConfigError, one line for each thing that is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_error(where, str(error))) from None
    lines = Lines(text)
    return _made(cls, data, base, lambda problem: f"{where}{_line(lines.find(problem.at))}: {problem.message}")


def parse(cls: type[T], data: Mapping[str, Any], *, where: str, base: Path) -> T:
    """As `parse_text`, from a mapping, which has no lines."""
    return _made(cls, data, base, lambda problem: f"{where}: {problem.message}")


def _made(cls: type[T], data: Mapping[str, Any], base: Path, told: Callable[[Problem], str]) -> T:
    reader = _Reader(base)
    found = reader.table(cls, data, ())
    if reader.problems:
        raise ConfigError("\n".join(dict.fromkeys(map(told, reader.problems))))
    assert isinstance(found, cls)
    return found


def _syntax_error(where: str, said: str) -> str:
    place = _SYNTAX_PLACE.search(said)
    if place is None:
        return f"{where}: {said}"
    return f"{where}:{place[1]}: {said[: place.start()]} ({place[2]})"


def _line(number: int | None) -> str:
    return f":{number}" if number else ""


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(sorted(known))}"


def place(at: At) -> str:
    """Keys and positions as people write them: inputs[0].dtype."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at)
    return text.removeprefix(".")


class _Reader:
    """Builds values, and collects what is wrong on the way."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.problems: list[Problem] = []

    def _say(self, at: At, message: str, *, of: At | None = None) -> Any:
        """Notes a problem at one place; the message begins with the place `of`, by default the same."""
        named = place(at if of is None else of)
        # What names its place itself needs no other.
        said = f"{named}: {message}" if named and not message.startswith(named) else message
        self.problems.append(Problem(at, said))
        return _WRONG

    def table(self, cls: Any, data: Mapping[str, Any], at: At) -> Any:
        before = len(self.problems)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        hints = get_type_hints(cls)
        for key in data:
            if key not in fields:
                self._say((*at, key), f"unknown key {key!r}{_nearest(key, list(fields))}", of=at)
        values: dict[str, Any] = {}
        for name, field in fields.items():
            if name in data:
                values[name] = self.value(hints[name], data[name], (*at, name))
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                self._say(at, f"key {name!r} is missing")
        # Of a table with wrong parts nothing more can be said.
        return _WRONG if len(self.problems) > before else self._whole(cls, values, at)

    def _whole(self, cls: Any, values: dict[str, Any], at: At) -> Any:
        try:
            return cls(**values)
        except Invalid as error:
            for problem in error.problems:
                self._say((*at, *problem.at), problem.message, of=at)
        except MeshError as error:
            self._say(at, error.message)
        return _WRONG

    def value(self, kind: Any, value: Any, at: At) -> Any:
        if kind is Any:
            return value
        if dataclasses.is_dataclass(kind):
            return self.table(kind, value, at) if isinstance(value, dict) else self._not(at, "a table", value)
        origin, args = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            return self.value(next(arg for arg in args if arg is not type(None)), value, at)
        if origin is Literal:
            return value if value in args else self._say(at, f"{value!r} is not one of {', '.join(map(repr, args))}")
        if origin is tuple:
            if not isinstance(value, list):
                return self._not(at, "a list", value)
            return tuple(self.value(args[0], item, (*at, i)) for i, item in enumerate(value))
        if origin is dict:
            if not isinstance(value, dict):
                return self._not(at, "a table", value)
            return {key: self.value(args[1], item, (*at, key)) for key, item in value.items()}
        return self._scalar(kind, value, at)

    def _not(self, at: At, expected: str, value: Any) -> Any:
        return self._say(at, f"expected {expected}, got {value!r}")

    def _scalar(self, kind: Any, value: Any, at: At) -> Any:
        if kind is Path and isinstance(value, str):
            return self._base / Path(value).expanduser()
        if kind is PathOrUrl and isinstance(value, str):
            local = value and "://" not in value
            return PathOrUrl(str(self._base / Path(value).expanduser()) if local else value)
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            return self._not(at, kind.__name__, value)
        # TOML knows nan and inf; no setting does, and nan slips through every comparison.
        if kind is float and not math.isfinite(value):
            return self._not(at, "a finite number", value)
        return value
