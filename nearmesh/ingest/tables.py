"""CSV: a table whose first line names its columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

from nearmesh.ingest.document import Problem, Unreadable
from nearmesh.ingest.files import File
from nearmesh.ingest.reading import MAX_LINE_BYTES, lines, opened
from nearmesh.ingest.records import Record

if TYPE_CHECKING:
    import _csv

# What a row may lie between columns; the one that the first line has most of is taken.
_DELIMITERS = ",;\t|"
MAX_COLUMNS = 1000


def read_table(file: File, encoding: str) -> Iterator[Record | Problem]:
    """Raises Unreadable for a file that is none, and where it cannot be told where the next row begins."""
    with opened(file.path) as stream:
        texts = _texts(stream, encoding)
        first = next(texts, "")
        delimiter = max(_DELIMITERS, key=first.count)
        bounded = _Bounded(chain((first,), texts))
        rows = csv.reader(bounded, delimiter=delimiter, strict=True)
        # A field is at most a row long; a quote that is never closed ends here. The limit is the whole process's.
        before = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            yield from _records(file, rows, bounded)
        except csv.Error as error:
            raise Unreadable(f"line {rows.line_num}: {error}") from None
        finally:
            csv.field_size_limit(before)


class _Bounded:
    """Lines of a table, of which one row takes so many: quotes may hold any number of lines together."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self._line = self._characters = 0

    def __iter__(self) -> _Bounded:
        return self

    def __next__(self) -> str:
        text = next(self._texts)
        self._line += 1
        self._characters += len(text)
        if self._characters > MAX_LINE_BYTES:
            limit = f"{MAX_LINE_BYTES // 1024**2} MiB"
            raise Unreadable(f"line {self._line}: its row is above the limit of {limit}; is a quote not closed?")
        return text

    def row_ends(self) -> None:
        self._characters = 0


def _records(file: File, rows: _csv.Reader, bounded: _Bounded) -> Iterator[Record | Problem]:
    columns = [name.strip() for name in next(rows, [])]
    if len(columns) > MAX_COLUMNS or len(set(columns)) != len(columns):
        raise Unreadable(f"the first line names {len(columns)} columns; at most {MAX_COLUMNS}, each once")
    begin = rows.line_num
    for row in rows:
        position, begin = f"line {begin + 1}", rows.line_num
        bounded.row_ends()
        if not row:
            continue
        if len(row) != len(columns):
            yield Problem(file.name, f"{len(row)} columns, where the first line names {len(columns)}", position)
            continue
        yield Record(position, dict(zip(columns, row, strict=True)))


def _texts(stream: BinaryIO, encoding: str) -> Iterator[str]:
    for number, line in lines(stream, encoding):
        if isinstance(line, Unreadable):
            raise Unreadable(f"line {number}: {line.message}")
        yield line
