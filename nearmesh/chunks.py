"""Files cut where their content says so, and the index that tells an artifact's chunks.

A boundary depends on the eight bytes before it alone. So where two versions of a file share a stretch, they share its
chunks, wherever it lies in either: bytes that were put in or taken out move no boundary further on. Whoever has one
version needs of the next only the chunks that are new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nearmesh.errors import InvalidInput, PackageError
from nearmesh.ids import check_digest

CHUNKS_TYPE = "application/vnd.nearmesh.model.chunks.v1+json"

# Smaller chunks find more that is shared, and cost more requests and a longer index: 256 KiB make 4,000 of a gigabyte,
# an index of 320 KB. The bounds keep hostile or monotonous files (zeros) from being cut into crumbs or not at all.
MIN_BYTES = 64 * 1024
MEAN_BYTES = 256 * 1024
MAX_BYTES = 1024 * 1024
# A file below this is sent as a whole.
LARGE_BYTES = MAX_BYTES
# Whoever cut the file, a chunk that is larger than this is none: it has to fit into memory.
MOST_BYTES = 16 * 1024 * 1024
# 300 GB in chunks of the mean size.
MAX_INDEX_BYTES = 96 * 1024 * 1024

_WINDOW = 8
# Odd, its bits in no order (2^64 divided by the golden ratio): the top bits of a product depend on all eight bytes.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# Of all words the part that makes a boundary; it is looked for only after the smallest size. Zeros make none.
_LIMIT = np.uint64(2**64 - 2**64 // (MEAN_BYTES - MIN_BYTES))
# What is looked at in one go: small enough that the intermediate products stay in the processor's cache.
_BLOCK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a file, known by its content."""

    offset: int
    size_bytes: int
    digest: str

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """The chunks of files, by the file's digest: in order, without gaps, from the first byte to the last."""

    files: Mapping[str, tuple[Chunk, ...]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Canonical JSON: size and SHA-256 of each chunk; where it begins follows."""
        files = {
            file: [[chunk.size_bytes, chunk.digest.removeprefix("sha256:")] for chunk in chunks]
            for file, chunks in self.files.items()
        }
        return json.dumps({"files": files}, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ChunkIndex:
        """Raises PackageError."""
        if len(data) > MAX_INDEX_BYTES:
            raise PackageError(f"a chunk index of {len(data)} bytes is above the limit of {MAX_INDEX_BYTES}")
        try:
            files = json.loads(data)["files"]
            return cls({check_digest(file): _in_order(entries) for file, entries in files.items()})
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, InvalidInput) as error:
            raise PackageError(f"not a chunk index: {error!r}") from None

    def check(self, digest: str, size_bytes: int) -> tuple[Chunk, ...]:
        """The chunks of a file; none where the index does not have it. Raises PackageError when they do not fit it."""
        chunks = self.files.get(digest, ())
        if chunks and chunks[-1].end != size_bytes:
            raise PackageError(f"the chunks of {digest} make {chunks[-1].end} bytes, the file has {size_bytes}")
        return chunks


def split(path: Path) -> tuple[Chunk, ...]:
    """A file's chunks; none of an empty file. Read in pieces, once."""
    found: list[Chunk] = []
    offset, sha = 0, hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for stretch, ends in _stretches(file):
            sha.update(stretch)
            offset += len(stretch)
            if ends:
                start = found[-1].end if found else 0
                found.append(Chunk(start, offset - start, "sha256:" + sha.hexdigest()))
                sha = hashlib.sha256()
    return tuple(found)


def index(files: Iterable[tuple[str, Path]]) -> ChunkIndex:
    """The index of those among the files, given with their digests, that are large enough to be worth it."""
    large = {digest: path for digest, path in files if path.stat().st_size >= LARGE_BYTES}
    return ChunkIndex({digest: split(path) for digest, path in large.items()})


def _stretches(file: Any) -> Iterator[tuple[memoryview, bool]]:
    """The file's bytes in order, and whether a chunk ends after them."""
    tail = b""
    size = 0
    while data := file.read(_BLOCK_BYTES):
        ends, done = _ends(tail + data, len(tail)), 0
        view = memoryview(data)
        while done < len(data):
            end = _next_end(ends, done, size)
            if end > len(data):
                break
            yield view[done:end], True
            done, size = end, 0
        if done < len(data):
            yield view[done:], False
            size += len(data) - done
        tail = (tail + data[-_WINDOW:])[1 - _WINDOW :]
    if size:
        yield memoryview(b""), True


def _next_end(ends: npt.NDArray[np.intp], done: int, size: int) -> int:
    """Where the chunk ends of which `size` bytes came before the block and the rest begins at `done` in it."""
    first = int(np.searchsorted(ends, done + MIN_BYTES - size))
    last = done + MAX_BYTES - size
    return min(int(ends[first]), last) if first < len(ends) else last


def _ends(data: bytes, before: int) -> npt.NDArray[np.intp]:
    """Where chunks may end in a block, in order; its first `before` bytes belong to the block before."""
    found = [
        np.flatnonzero(np.frombuffer(data, "<u8", (len(data) - shift) // _WINDOW, shift) * _MULTIPLIER >= _LIMIT)
        * _WINDOW
        + shift
        for shift in range(min(_WINDOW, max(len(data) - _WINDOW + 1, 0)))
    ]
    return np.sort(np.concatenate(found)) + (_WINDOW - before) if found else np.empty(0, np.intp)


def _in_order(entries: Any) -> tuple[Chunk, ...]:
    found, offset = [], 0
    for size_bytes, sha256 in entries:
        if type(size_bytes) is not int or not 0 < size_bytes <= MOST_BYTES:
            raise ValueError(f"a chunk of {size_bytes!r} bytes")
        found.append(Chunk(offset, size_bytes, check_digest(f"sha256:{sha256}")))
        offset += size_bytes
    return tuple(found)
