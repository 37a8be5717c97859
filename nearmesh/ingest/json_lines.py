"""JSON lines: an object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from nearmesh.ingest.document import Problem, Unreadable
from nearmesh.ingest.files import File
from nearmesh.ingest.reading import lines, opened
from nearmesh.ingest.records import Record


def read_json_lines(file: File, encoding: str) -> Iterator[Record | Problem]:
    """Raises Unreadable for a file that is none."""
    with opened(file.path) as stream:
        for number, line in lines(stream, encoding):
            position = f"line {number}"
            try:
                if isinstance(line, Unreadable):
                    raise line
                if line.strip():
                    yield Record(position, _object(line))
            except Unreadable as error:
                yield Problem(file.name, error.message, position)


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line, parse_constant=_refuse)
    except RecursionError:
        raise Unreadable("nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Unreadable(f"expected an object, got {type(found).__name__}")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")
