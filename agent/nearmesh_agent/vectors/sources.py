"""What a collection's rows are from, kept in step with every write: for `ListSources`, without a look at every row."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nearmesh_agent.vectors.model import Row


@dataclass(slots=True)
class _Content:
    """Parts of one content of a source."""

    here: int = 0
    # How many there should be, as its parts say.
    parts: int = 0
    written_at_s: float = 0.0


@dataclass(slots=True)
class _Source:
    contents: dict[str, _Content] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source as it is now."""

    name: str
    # Of the content that its newest part is from.
    hash: str
    here: int
    parts: int
    # Parts of older content that are still there.
    stale: int
    written_at_s: float


class Sources:
    """Of one collection. Not for several threads at once."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}
        self._names: list[str] = []

    def replace(self, old: Iterable[Row], new: Iterable[Row]) -> None:
        """Rows that were there, and those that are there in their place."""
        for row in old:
            self._take(row)
        for row in new:
            self._put(row)

    def page(self, prefix: str, after: str, size: int) -> tuple[Sequence[Source], str]:
        """In the order of their names, and the last name where there are more."""
        first = bisect_right(self._names, after) if after else bisect_left(self._names, prefix)
        found = []
        for name in self._names[first : first + size + 1]:
            if not name.startswith(prefix):
                break
            found.append(_told(name, self._sources[name]))
        return found[:size], found[size - 1].name if len(found) > size else ""

    def __len__(self) -> int:
        return len(self._sources)

    def _put(self, row: Row) -> None:
        origin = row.origin
        if not origin.source:
            return
        if origin.source not in self._sources:
            self._sources[origin.source] = _Source()
            insort(self._names, origin.source)
        content = self._sources[origin.source].contents.setdefault(origin.hash, _Content())
        content.here += 1
        content.parts = max(content.parts, origin.parts)
        content.written_at_s = max(content.written_at_s, row.written_at_s)

    def _take(self, row: Row) -> None:
        found = self._sources.get(row.origin.source)
        content = found.contents.get(row.origin.hash) if found else None
        if not found or not content:
            return
        content.here -= 1
        if not content.here:
            del found.contents[row.origin.hash]
        if not found.contents:
            del self._sources[row.origin.source]
            del self._names[bisect_left(self._names, row.origin.source)]


def _told(name: str, found: _Source) -> Source:
    newest = max(found.contents, key=lambda hash_: (found.contents[hash_].written_at_s, hash_))
    content = found.contents[newest]
    return Source(
        name=name,
        hash=newest,
        here=content.here,
        parts=content.parts,
        stale=sum(other.here for hash_, other in found.contents.items() if hash_ != newest),
        written_at_s=content.written_at_s,
    )
