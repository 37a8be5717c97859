"""How a blob is taken apart to be fetched: chunks, each known by its digest where the version says so, and stretches of
them, which are what nodes of one site share out. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from nearmesh.chunks import Chunk
from nearmesh.oci import Descriptor

# Of a blob whose version has no chunk index: what is fetched anew at most when a connection breaks.
FIXED_BYTES = 1024 * 1024
# Small enough that three nodes find work in a model of ten megabytes, large enough that asking costs little of it; and
# so many at most, since each of them is looked at.
STRETCH_BYTES = 2 * 1024 * 1024
MOST_STRETCHES = 2000

MISSING, COMING, HERE = 0, 1, 2


class Pieces:
    """One blob's chunks, what has become of each, and its stretches, which every node cuts alike."""

    def __init__(self, blob: Descriptor, chunks: Sequence[Chunk] = ()) -> None:
        """`chunks` cover the blob; without them it is cut into parts of a fixed size, whose digests nobody knows."""
        self.blob = blob
        self.chunks = tuple(chunks) or fixed(blob.size_bytes)
        self.state = bytearray(len(self.chunks))
        # Numbers of the first chunk of each stretch, and one more at the end.
        self.starts = _starts(self.chunks, blob.size_bytes)
        self.left = len(self.chunks)
        self.left_bytes = blob.size_bytes
        # Every stretch before this one is here.
        self._first = 0

    @property
    def digest(self) -> str:
        return self.blob.digest

    def arrived(self, number: int) -> None:
        """The chunk lies on the disk and is right; safe to repeat."""
        if self.state[number] != HERE:
            self.state[number] = HERE
            self.left -= 1
            self.left_bytes -= self.chunks[number].size_bytes

    def coming(self, first: int, end: int) -> None:
        self.state[first:end] = bytes([COMING]) * (end - first)

    def given_up(self, first: int, end: int) -> None:
        """Whoever was to bring these chunks does not any more."""
        for number in range(first, end):
            if self.state[number] == COMING:
                self.state[number] = MISSING

    def unfinished(self) -> range:
        """Numbers of the stretches of which something may be missing, in order."""
        last = len(self.starts) - 1
        while self._first < last and self.whole(self._first):
            self._first += 1
        return range(self._first, last)

    def whole(self, stretch: int) -> bool:
        first, end = self.starts[stretch], self.starts[stretch + 1]
        return self.state.count(HERE, first, end) == end - first

    def missing_from(self, first: int, end: int, most_bytes: int) -> tuple[int, int]:
        """The first run of missing chunks between two numbers, of about so many bytes; (end, end) where there is none.

        It has one chunk at least.
        """
        start = self.state.find(MISSING, first, end)
        if start < 0:
            return end, end
        stop, size = start, 0
        while stop < end and self.state[stop] == MISSING and (size < most_bytes or stop == start):
            size += self.chunks[stop].size_bytes
            stop += 1
        return start, stop


def fixed(size_bytes: int) -> tuple[Chunk, ...]:
    """Parts of a fixed size, without digests."""
    starts = range(0, size_bytes, FIXED_BYTES)
    return tuple(Chunk(start, min(FIXED_BYTES, size_bytes - start), "") for start in starts)


def _starts(chunks: Sequence[Chunk], size_bytes: int) -> tuple[int, ...]:
    """Depends on the version alone, so that all nodes mean the same by a stretch's number."""
    least = max(STRETCH_BYTES, size_bytes // MOST_STRETCHES)
    found, size = [0], 0
    for number, chunk in enumerate(chunks, start=1):
        size += chunk.size_bytes
        if size >= least and number < len(chunks):
            found.append(number)
            size = 0
    return (*found, len(chunks)) if chunks else (0,)
