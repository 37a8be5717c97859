"""Plain text: paragraphs between empty lines."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from nearmesh.ingest.document import Break, Content, Numbered

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")


def read_plain(text: str) -> Content:
    return Content(text, Paragraphs(text), Numbered("line", line_starts(text)))


@dataclass(frozen=True, slots=True)
class Paragraphs:
    """Where they begin, found as they are asked for: a file may be of nothing but empty lines."""

    text: str

    def __iter__(self) -> Iterator[tuple[int, Break]]:
        return ((match.end(), Break.BLOCK) for match in _PARAGRAPH.finditer(self.text))


def line_starts(text: str) -> Sequence[int]:
    return array("I", chain((0,), (match.end() for match in re.finditer("\n", text))))
