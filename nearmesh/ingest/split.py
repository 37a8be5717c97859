"""Cuts a text into parts: by its structure first, and by length. Pure.

A text is taken as units, which are never cut: sentences, or pieces of one that is too long by itself. Units are packed
into a part until it is full. It then ends at the best place in its second half: before a section, else a paragraph,
else a sentence, and so on. A section begins a part of its own, unless what comes before it is short. The next part
begins with the end of the last one, so that what a cut divides is whole in one of them. Units are made as they are
needed: a file may be of nothing but tiny ones.

Parts are slices of the text; nothing of it is lost but white space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from nearmesh.errors import ConfigError
from nearmesh.ingest.document import Break, Content

# Some 220 tokens of English, of the 256 that small embedders read.
LENGTH = 1000
OVERLAP = 150
# A row of a collection has at most 60,000 bytes of text, and a character has up to four.
LENGTHS = (100, 15_000)

# A character of a script that has no spaces is a word or half of one, and a token: it counts as four.
WIDE_WEIGHT = 4
_WIDE = re.compile(
    "[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
# None of these looks at a character more than a few times, whatever the text.
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|[。！？；][」』”’）]*\s*")
_LINE_END = re.compile(r"\n\s*")
_WORD_END = re.compile(r"\s+")
# A part that has this share of the length may end before a section; a full one looks back to that.
_SECTION_SHARE, _FULL_SHARE = 0.25, 0.5


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long parts are, and how much of one is in the next as well; in characters, see WIDE_WEIGHT."""

    length: int = LENGTH
    overlap: int = OVERLAP

    def __post_init__(self) -> None:
        shortest, longest = LENGTHS
        if not shortest <= self.length <= longest:
            raise ConfigError(f"a length of {self.length} characters is not from {shortest} to {longest}")
        if not 0 <= self.overlap <= self.length // 2:
            raise ConfigError(f"an overlap of {self.overlap} characters is not from 0 to half of {self.length}")


@dataclass(frozen=True, slots=True)
class Part:
    """A slice of a text."""

    text: str
    start: int
    position: str


@dataclass(frozen=True, slots=True)
class Unit:
    """A slice that is never cut; `before` says what kind of place it begins at."""

    start: int
    end: int
    weight: int
    before: Break


def split(content: Content, sizes: Sizes) -> list[Part]:
    """The parts in order; none of a text that is only white space."""
    text, reached = content.text, 0
    parts: list[Part] = []
    for start, end in _spans(text, units(text, content.breaks, sizes.length), sizes):
        found = text[start:end]
        left = start + len(found) - len(found.lstrip())
        right = left + len(found.strip())
        # One that is only white space has nothing new, though it may begin with the end of the one before.
        if right > max(left, reached):
            parts.append(Part(text[left:right], left, content.places(left, right)))
            reached = right
    return parts


def weight(text: str) -> int:
    """How long it counts as."""
    return len(text) if text.isascii() else len(text) + (WIDE_WEIGHT - 1) * len(_WIDE.findall(text))


# Units.


def units(text: str, breaks: Iterable[tuple[int, Break]], length: int) -> Iterator[Unit]:
    """All of the text in slices of at most `length`."""
    start, before = 0, Break.SECTION
    for end, kind in breaks:
        if 0 < end < len(text):
            yield from _finer(text, start, end, before, length, _LEVELS)
            start, before = end, kind
    yield from _finer(text, start, len(text), before, length, _LEVELS)


# How a slice that is too long is cut, the coarsest way first. Sentences are looked for in any.
_LEVELS = ((_SENTENCE_END, Break.SENTENCE), (_LINE_END, Break.LINE), (_WORD_END, Break.WORD))


def _finer(
    text: str, start: int, end: int, before: Break, length: int, levels: Sequence[tuple[re.Pattern[str], Break]]
) -> Iterator[Unit]:
    if not levels:
        yield from _pieces(text, start, end, before, length)
        return
    pattern, kind = levels[0]
    ends = (match.end() for match in pattern.finditer(text, start, end))
    for stop in chain(ends, (end,)):
        if stop <= start:
            continue
        heavy = weight(text[start:stop])
        if heavy <= length:
            yield Unit(start, stop, heavy, before)
        else:
            yield from _finer(text, start, stop, before, length, levels[1:])
        start, before = stop, kind


def _pieces(text: str, start: int, end: int, before: Break, length: int) -> Iterator[Unit]:
    """Of a word that is too long, such as a line of Chinese or base64."""
    while start < end:
        stop = _longest(text, start, end, length)
        yield Unit(start, stop, weight(text[start:stop]), before)
        start, before = stop, Break.CHARACTER


def _longest(text: str, start: int, end: int, length: int) -> int:
    """Where the longest slice from `start` on ends that is not above `length`; between characters as people see them,
    where that costs little."""
    stop = min(end, start + length)
    while weight(text[start:stop]) > length:
        over = weight(text[start:stop]) - length
        stop -= max(1, over // WIDE_WEIGHT)
    for at in range(stop, max(start, stop - 8), -1):
        if at == len(text) or not unicodedata.combining(text[at]):
            return at
    return stop


# Parts.


def _spans(text: str, of: Iterator[Unit], sizes: Sizes) -> Iterator[tuple[int, int]]:
    start = 0
    ahead: list[Unit] = []
    while _look(ahead, of, sizes.length):
        after = _fill(ahead, weight(text[start : ahead[0].start]), sizes.length)
        end = ahead[after - 1].end
        yield start, end
        start = _begin(text, ahead, after, sizes) if after < len(ahead) else end
        del ahead[:after]


def _look(ahead: list[Unit], of: Iterator[Unit], length: int) -> bool:
    """Adds more units than one part takes, or all that there are; False where there are none."""
    total = sum(unit.weight for unit in ahead)
    while total <= length and (unit := next(of, None)):
        ahead.append(unit)
        total += unit.weight
    return bool(ahead)


def _fill(of: Sequence[Unit], carried: int, length: int) -> int:
    """The unit before which a part ends that begins with `carried` characters of the last one, and the first unit."""
    total, at = carried, 0
    # What stands in the part before each of its units.
    before: list[int] = []
    while at < len(of) and total + of[at].weight <= length:
        if at and of[at].before is Break.SECTION and total >= _SECTION_SHARE * length:
            return at
        before.append(total)
        total += of[at].weight
        at += 1
    if at == len(of):
        return at
    late = [at] + [place for place, stands in enumerate(before) if place and stands >= _FULL_SHARE * length]
    return max(late, key=lambda place: (of[place].before, place))


def _begin(text: str, of: Sequence[Unit], after: int, sizes: Sizes) -> int:
    """Where the part begins whose first new unit is `after`; the last part's was the first."""
    cut = of[after].start
    if of[after].before is Break.SECTION:
        return cut
    room = min(sizes.overlap, sizes.length - of[after].weight)
    found, taken = after, 0
    while found > 1 and taken + of[found - 1].weight <= room:
        found -= 1
        taken += of[found].weight
        if of[found].before is Break.SECTION:
            break
    return of[found].start if found < after else _word(text, of[0].start, cut, room)


def _word(text: str, first: int, cut: int, room: int) -> int:
    """As much of the words before `cut` as there is room for, not from before `first`."""
    window = max(first, cut - room)
    while window < cut and weight(text[window:cut]) > room:
        window += max(1, (weight(text[window:cut]) - room) // WIDE_WEIGHT)
    if window >= cut or window == first:
        return cut
    if space := _WORD_END.search(text, window, cut):
        return space.end()
    return window if _WIDE.match(text, window) else cut
