"""Markdown: sections by headings, and the blocks in them, as CommonMark reads it. The text stays as it is written."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nearmesh.errors import NotInstalled
from nearmesh.ingest.document import MAX_POSITION_CHARACTERS, Break, Content
from nearmesh.ingest.plain import line_starts, read_plain

if TYPE_CHECKING:
    from markdown_it.token import Token

# A longer one is read as plain text: a block takes some hundred bytes of memory, and a file may be made to have one at
# every other byte.
MAX_CHARACTERS, MAX_LINES = 4 * 1024 * 1024, 100_000
# What is not cut where a sentence would be: items of a list, rows of a table.
_ITEMS = {"list_item_open", "tr_open"}


@dataclass(frozen=True, slots=True)
class Headings:
    """Names a place by the headings above it."""

    starts: Sequence[int]
    paths: Sequence[str]

    def __call__(self, start: int, end: int) -> str:
        at = bisect_right(self.starts, start)
        return self.paths[at - 1] if at else ""


def read_markdown(text: str) -> Content:
    """Raises NotInstalled."""
    if len(text) > MAX_CHARACTERS or text.count("\n") > MAX_LINES:
        return read_plain(text)
    begin = _front_matter_end(text)
    starts = [begin + at for at in line_starts(text[begin:])]
    breaks: dict[int, Break] = {begin: Break.SECTION} if begin else {}
    heads: list[int] = []
    paths: list[str] = []
    above: list[tuple[int, str]] = []
    tokens = _blocks(text[begin:])
    for index, token in enumerate(tokens):
        if token.map is None or token.nesting < 0:
            continue
        at = starts[min(token.map[0], len(starts) - 1)]
        kind = _kind(token)
        if kind is not None:
            breaks[at] = max(kind, breaks.get(at, kind))
        if kind is Break.SECTION:
            level = int(token.tag[1:])
            above = [(of, title) for of, title in above if of < level]
            above.append((level, " ".join(tokens[index + 1].content.split())))
            heads.append(at)
            paths.append(" > ".join(title for _, title in above if title)[:MAX_POSITION_CHARACTERS])
    return Content(text, sorted(breaks.items()), Headings(heads, paths))


def _blocks(text: str) -> Sequence[Token]:
    try:
        from markdown_it import MarkdownIt
    except ImportError:
        raise NotInstalled("reading Markdown needs markdown-it-py: pip install 'nearmesh[ingest]'") from None
    # Which words are emphasized does not matter.
    return MarkdownIt("commonmark").enable("table").disable(["inline", "text_join"]).parse(text)


def _kind(token: Token) -> Break | None:
    """What begins at a block; None in the middle of one."""
    if token.level == 0:
        return Break.SECTION if token.type == "heading_open" else Break.BLOCK
    return Break.SENTENCE if token.type in _ITEMS else None


def _front_matter_end(text: str) -> int:
    """Where the text proper begins, after facts between lines of three dashes."""
    if not text.startswith("---\n"):
        return 0
    end = text.find("\n---\n", 3)
    return end + len("\n---\n") if end >= 0 else 0
