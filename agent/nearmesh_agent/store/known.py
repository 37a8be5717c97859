"""Chunks that lie in other files of this disk: a version that changes a few tensors has most of the one before.

Each is hashed on its way from file to file, as one that comes over the network is. Sharing blocks between files
(reflinks) would not fit: chunks begin where their content says, not where blocks do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nearmesh.chunks import ChunkIndex
from nearmesh.errors import DigestMismatch, PackageError
from nearmesh_agent.store.draft import Draft
from nearmesh_agent.store.pieces import MISSING, Pieces


@dataclass(frozen=True, slots=True)
class Copy:
    """A missing chunk, and a place that should have it."""

    pieces: Pieces
    number: int
    path: Path
    offset: int


def find(wanted: Iterable[Pieces], indexes: Iterable[tuple[ChunkIndex, Callable[[str], Path | None]]]) -> list[Copy]:
    """A copy for each missing chunk of `wanted` that some index places in a file which is here.

    With each index comes what finds a file by its digest.
    """
    missing: dict[str, list[tuple[Pieces, int]]] = {}
    for pieces in wanted:
        for number, chunk in enumerate(pieces.chunks):
            if chunk.digest and pieces.state[number] == MISSING:
                missing.setdefault(chunk.digest, []).append((pieces, number))
    found = []
    for index, where in indexes:
        for file, chunks in index.files.items():
            there = [chunk for chunk in chunks if chunk.digest in missing]
            path = where(file) if there else None
            if path is None:
                continue
            for chunk in there:
                found += [Copy(*place, path, chunk.offset) for place in missing.pop(chunk.digest, ())]
    return found


def read_index(path: Path) -> ChunkIndex:
    """Of a version that is here; an index that is damaged or gone has nothing."""
    try:
        return ChunkIndex.from_bytes(path.read_bytes())
    except (OSError, PackageError):
        return ChunkIndex()


def copy(
    copies: Iterable[Copy], drafts: Mapping[str, Draft], arrived: Callable[[Copy], None], stop: threading.Event
) -> None:
    """In a thread. What is not there any more, or not right, is left for others to bring. Raises OSError."""
    fds: dict[Path, int] = {}
    try:
        for each in copies:
            if stop.is_set():
                return
            data = _read(fds, each)
            try:
                if data and drafts[each.pieces.digest].put(each.number, memoryview(data)):
                    arrived(each)
            except DigestMismatch:
                pass
    finally:
        for fd in fds.values():
            os.close(fd)


def _read(fds: dict[Path, int], copy: Copy) -> bytes:
    size = copy.pieces.chunks[copy.number].size_bytes
    try:
        if copy.path not in fds:
            fds[copy.path] = os.open(copy.path, os.O_RDONLY)
        return os.pread(fds[copy.path], size, copy.offset)
    except OSError:
        return b""
