"""What a reader makes of a file: documents, each with its text, its structure and what else it carries."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from nearmesh.errors import InvalidInput
from nearmesh.vector_values import Scalar

# Shown beside a hit.
MAX_POSITION_CHARACTERS = 120


class Unreadable(InvalidInput):
    """A file, or a record of one, that cannot be imported; the message says why, without its name."""


class Break(IntEnum):
    """Where a text may be cut, the best place last."""

    CHARACTER = 0
    WORD = 1
    LINE = 2
    SENTENCE = 3
    BLOCK = 4
    SECTION = 5


# Says where the text between two offsets stands, for people.
Places = Callable[[int, int], str]


def nowhere(start: int, end: int) -> str:
    """Of a text that has no places worth a word."""
    return ""


@dataclass(frozen=True, slots=True)
class Numbered:
    """Lines or pages: `starts` has the offset of each, the first being 0."""

    word: str
    starts: Sequence[int]

    def __call__(self, start: int, end: int) -> str:
        first, last = self._number(start), self._number(max(start, end - 1))
        return f"{self.word} {first}" if first == last else f"{self.word}s {first}-{last}"

    def _number(self, offset: int) -> int:
        return bisect_right(self.starts, offset)


@dataclass(frozen=True, slots=True)
class Content:
    """A document's text, with the offsets at which something begins, ascending."""

    text: str
    breaks: Iterable[tuple[int, Break]] = ()
    places: Places = nowhere
    fields: Mapping[str, Scalar] = field(default_factory=dict)
    # Little-endian FP32, of a document that brings its own: it is one row, and not cut.
    vector: bytes = b""


@dataclass(frozen=True, slots=True)
class Document:
    """One source: a file, or a record of one."""

    source: str
    # Of its whole content and of how it is cut: the same again is not read.
    hash: str
    # Raises Unreadable.
    read: Callable[[], Content]


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not be imported, and why; what is there of it already stays."""

    # The file or folder.
    source: str
    message: str
    # A line or a record of it.
    position: str = ""

    def __str__(self) -> str:
        return f"{self.source}{self.position and f', {self.position}'}: {self.message}"
