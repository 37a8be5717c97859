"""Plain text: paragraphs between empty lines."""

from __future__ import annotations

import re

from nearmesh.ingest.document import Break, Content, Numbered

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")


def read_plain(text: str) -> Content:
    return Content(text, paragraphs(text), Numbered("line", line_starts(text)))


def paragraphs(text: str) -> list[tuple[int, Break]]:
    return [(match.end(), Break.BLOCK) for match in _PARAGRAPH.finditer(text)]


def line_starts(text: str) -> list[int]:
    return [0, *(match.end() for match in re.finditer("\n", text))]
