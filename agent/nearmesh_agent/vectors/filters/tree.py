"""What a filter says, as a tree: how it takes a row, a table's columns, and how Milvus is told.

There is no "not" in it: the reader turns comparisons around, so that a row that lacks a field is taken by neither.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from nearmesh_agent.vectors.model import Columns, FieldType, Mask, Row, Scalar, presence

# What every row has, beside the fields that its collection declares.
STANDING = {
    "id": FieldType.STRING,
    "source": FieldType.STRING,
    "source_hash": FieldType.STRING,
    "part": FieldType.INT,
}

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}

# UTF-16's surrogates lie between; they are no characters.
_SURROGATES = (0xD800, 0xDFFF)
_LAST_CHARACTER = 0x10FFFF
# Parts that Milvus is told side by side.
_IN_A_ROW = 8


def value_of(row: Row, name: str) -> Scalar | None:
    """A row's value of a field; None where it lacks it."""
    match name:
        case "id":
            return row.id
        case "source":
            return row.origin.source
        case "source_hash":
            return row.origin.hash
        case "part":
            return row.origin.part
    return row.fields.get(name)


@dataclass(frozen=True, slots=True)
class Compare:
    field: str
    operator: str
    value: Scalar

    def milvus(self) -> str:
        return _of_those_that_have(self.field, f"{self.field} {self.operator} {_literal(self.value)}")

    def matches(self, row: Row) -> bool:
        value = value_of(row, self.field)
        return value is not None and bool(COMPARISONS[self.operator](value, self.value))

    def mask(self, columns: Columns) -> Mask:
        return columns.column(self.field).compare(self.operator, self.value)

    def opposite(self) -> Filter:
        return Compare(self.field, _OPPOSITE[self.operator], self.value)


@dataclass(frozen=True, slots=True)
class Within:
    """One of some values, or none of them."""

    field: str
    values: frozenset[Scalar]
    negated: bool = False

    def milvus(self) -> str:
        listed = ", ".join(sorted(map(_literal, self.values)))
        return _of_those_that_have(self.field, f"{self.field} {'not in' if self.negated else 'in'} [{listed}]")

    def matches(self, row: Row) -> bool:
        value = value_of(row, self.field)
        return value is not None and (value in self.values) != self.negated

    def mask(self, columns: Columns) -> Mask:
        return columns.column(self.field).within(self.values, negated=self.negated)

    def opposite(self) -> Filter:
        return Within(self.field, self.values, not self.negated)


@dataclass(frozen=True, slots=True)
class Prefixed:
    """A string that begins so, or does not."""

    field: str
    prefix: str
    negated: bool = False

    def milvus(self) -> str:
        """As a range, which has no wildcards that would have to be escaped."""
        end = after_all(self.prefix)
        start = f"{self.field} {'<' if self.negated else '>='} {_literal(self.prefix)}"
        if end is None:
            return _of_those_that_have(self.field, start)
        joint, stop = ("or", ">=") if self.negated else ("and", "<")
        return _of_those_that_have(self.field, f"({start} {joint} {self.field} {stop} {_literal(end)})")

    def matches(self, row: Row) -> bool:
        value = value_of(row, self.field)
        return isinstance(value, str) and value.startswith(self.prefix) != self.negated

    def mask(self, columns: Columns) -> Mask:
        return columns.column(self.field).prefixed(self.prefix, negated=self.negated)

    def opposite(self) -> Filter:
        return Prefixed(self.field, self.prefix, not self.negated)


@dataclass(frozen=True, slots=True)
class AllOf:
    parts: tuple[Filter, ...]

    def milvus(self) -> str:
        return _joined("and", [part.milvus() for part in self.parts])

    def matches(self, row: Row) -> bool:
        return all(part.matches(row) for part in self.parts)

    def mask(self, columns: Columns) -> Mask:
        return reduce(operator.and_, (part.mask(columns) for part in self.parts))

    def opposite(self) -> Filter:
        return AnyOf(tuple(part.opposite() for part in self.parts))


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple[Filter, ...]

    def milvus(self) -> str:
        return _joined("or", [part.milvus() for part in self.parts])

    def matches(self, row: Row) -> bool:
        return any(part.matches(row) for part in self.parts)

    def mask(self, columns: Columns) -> Mask:
        return reduce(operator.or_, (part.mask(columns) for part in self.parts))

    def opposite(self) -> Filter:
        return AllOf(tuple(part.opposite() for part in self.parts))


Filter = Compare | Within | Prefixed | AllOf | AnyOf


def _joined(word: str, parts: Sequence[str]) -> str:
    """In brackets, many by halves: a server reads each as one inside the next, and gives up a hundred deep."""
    if len(parts) <= _IN_A_ROW:
        return "(" + f" {word} ".join(parts) + ")"
    middle = len(parts) // 2
    return f"({_joined(word, parts[:middle])} {word} {_joined(word, parts[middle:])})"


def _of_those_that_have(field: str, told: str) -> str:
    """As Milvus is told: a row that lacks a field has something in the store's column all the same."""
    return told if field in STANDING else f"({presence(field)} == true and {told})"


def after_all(prefix: str) -> str | None:
    """The least string that comes after all that begin so, by code points; None: there is none."""
    kept = prefix.rstrip(chr(_LAST_CHARACTER))
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    if _SURROGATES[0] <= following <= _SURROGATES[1]:
        following = _SURROGATES[1] + 1
    return kept[:-1] + chr(following)


# Milvus knows these escapes and takes every other character as it is.
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def _literal(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    return repr(value)
