"""Files of records: each is a document, known by its id, with the fields that the collection has."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearmesh.errors import ConfigError
from nearmesh.ingest.document import Content, Document, Problem, Unreadable
from nearmesh.ingest.files import MAX_NAME_BYTES, speakable
from nearmesh.ingest.plain import Paragraphs
from nearmesh.ingest.reading import clean
from nearmesh.vector_values import Scalar

# What a record's id may be, so that its name can be one of a source.
MAX_ID_BYTES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRules:
    """Which of a record's columns mean what."""

    # Joined by an empty line where there are several.
    text: tuple[str, ...] = ("text",)
    id: str = "id"
    vector: str = "vector"
    # Of the collection, by name and type (string, int, float, bool); other columns are left out.
    fields: Mapping[str, str] = field(default_factory=dict)
    dimension: int = 0

    def __post_init__(self) -> None:
        if not self.text:
            raise ConfigError("no column is named that holds the text")


@dataclass(frozen=True, slots=True)
class Record:
    """As it stands in the file; values of a table are all text."""

    position: str
    values: Mapping[str, Any]


def documents(
    file: str, records: Iterable[Record | Problem], rules: RecordRules, recipe: str
) -> Iterator[Document | Problem]:
    """One document for each record that has a text or a vector."""
    # Where each name stood first.
    named: dict[str, str] = {}
    for record in records:
        if isinstance(record, Problem):
            yield record
            continue
        try:
            found = _document(file, record, rules, recipe)
        except Unreadable as error:
            yield Problem(file, error.message, record.position)
            continue
        first = named.setdefault(found.source, record.position)
        if first == record.position:
            yield found
        elif record.values.get(rules.id) not in (None, ""):
            # What has no id is known by its content: twice the same is once.
            yield Problem(file, f"{rules.id} {record.values[rules.id]!r} stands in {first} already", record.position)


def _document(file: str, record: Record, rules: RecordRules, recipe: str) -> Document:
    values = record.values
    vector = _vector(values[rules.vector], rules) if values.get(rules.vector) not in (None, "") else b""
    text = _text(values, rules, vector)
    fields = {
        name: value
        for name, kind in rules.fields.items()
        if (value := as_field(name, kind, values.get(name))) is not None
    }
    content = Content(text, Paragraphs(text), lambda start, end: record.position, fields, vector)
    digest = _digest(recipe, content)
    given = values.get(rules.id)
    source = f"{file}/{_id(given, rules) if given not in (None, '') else f'~{digest[:16]}'}"
    if len(source.encode()) > MAX_NAME_BYTES:
        raise Unreadable(f"its name {source[:60]!r}... is above {MAX_NAME_BYTES} bytes")
    return Document(source, digest, lambda: content)


def _id(given: object, rules: RecordRules) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise Unreadable(f"{rules.id} {_short(given)} is neither text nor a whole number")
    found = speakable(str(given))
    if len(found.encode()) > MAX_ID_BYTES:
        raise Unreadable(f"{rules.id} {_short(given)} is above {MAX_ID_BYTES} bytes")
    return found


def _text(values: Mapping[str, Any], rules: RecordRules, vector: bytes) -> str:
    found: list[str] = []
    for name in rules.text:
        value = values.get(name)
        if value is not None and not isinstance(value, str):
            raise Unreadable(f"{name} {_short(value)} is not text")
        if value:
            found.append(clean(value))
    if not found and not vector and not any(name in values for name in rules.text):
        has = ", ".join(map(str, list(values)[:10])) or "nothing"
        raise Unreadable(f"no {' nor '.join(rules.text)} in it; it has {_cut(has)}: --text names the column to take")
    return "\n\n".join(found)


def _vector(given: object, rules: RecordRules) -> bytes:
    if isinstance(given, str):
        # In a table.
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise Unreadable(f"{rules.vector} {_short(given)} is no list of numbers") from None
    if not isinstance(given, list) or not all(type(number) in (int, float) for number in given):
        raise Unreadable(f"{rules.vector} {_short(given)} is no list of numbers")
    if rules.dimension and len(given) != rules.dimension:
        raise Unreadable(f"{rules.vector} has {len(given)} numbers, the collection's have {rules.dimension}")
    with np.errstate(over="ignore"):
        try:
            found = np.array(given, "<f8").astype("<f4")
        except OverflowError:
            raise Unreadable(f"{rules.vector} has a number that FP32 cannot hold") from None
    if not np.isfinite(found).all():
        raise Unreadable(f"{rules.vector} has a number that FP32 cannot hold")
    return found.tobytes()


def as_field(name: str, kind: str, value: Any) -> Scalar | None:
    """A column's value as the collection wants it; None for none. Raises Unreadable."""
    if value is None or (value == "" and kind != "string"):
        return None
    try:
        return _PARSERS[kind](value)
    except (ValueError, TypeError, OverflowError):
        raise Unreadable(f"{name} {_short(value)} is no {kind}, which the collection wants") from None


def _string(value: Any) -> str:
    if isinstance(value, str):
        return clean(value)
    if not isinstance(value, int | float):
        raise ValueError
    return json.dumps(value)


def _int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    found = int(value)
    if not -(2**63) <= found < 2**63:
        raise ValueError
    return found


def _float(value: Any) -> float:
    found = float(value)
    if isinstance(value, bool) or not math.isfinite(found):
        raise ValueError
    return found


def _bool(value: Any) -> bool:
    word = str(value).lower()
    if word not in _BOOLS:
        raise ValueError
    return _BOOLS[word]


_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_PARSERS: dict[str, Callable[[Any], Scalar]] = {"string": _string, "int": _int, "float": _float, "bool": _bool}


def _digest(recipe: str, content: Content) -> str:
    known = json.dumps([recipe, content.text, dict(content.fields)], sort_keys=True).encode()
    return hashlib.sha256(known + b"\0" + content.vector).hexdigest()[:32]


def _short(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "..."
