"""The journal's files: each is named after its first position, and holds frames one after the other.

A kill or a power cut may leave the end of the last file torn. It was never acknowledged and is cut off. Damage further
in is another thing, and is told: a frame behind it says that what is damaged had been on disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nearmesh.errors import DigestMismatch
from nearmesh_agent.vectors.store import records
from nearmesh_agent.vectors.store.records import HEAD_BYTES, MAGIC, Head

_SUFFIX = ".journal"


def name(first: int) -> str:
    """Of the file that begins with this position; sorts as the numbers do."""
    return f"{first:020d}{_SUFFIX}"


def firsts(folder: Path) -> list[int]:
    """First positions of the files that are there, in order."""
    return sorted(int(path.stem) for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit())


def frames(path: Path, after: int = 0) -> Iterator[tuple[Head, bytes]]:
    """Whole frames behind a position, until the first that is none; earlier ones are passed over unread."""
    with path.open("rb") as file:
        while (found := records.head(file.read(HEAD_BYTES))) is not None:
            if found.position <= after:
                file.seek(found.length, os.SEEK_CUR)
                continue
            payload = file.read(found.length)
            if len(payload) != found.length or not found.holds(payload):
                return
            yield found, payload


def mend(path: Path) -> int:
    """Cuts a torn end off the last file; the last position in it, which then is on disk.

    Raises DigestMismatch for damage to what had been on disk.
    """
    position, size = int(path.stem) - 1, 0
    for found, payload in frames(path):
        if found.position != position + 1:
            break
        position, size = found.position, size + HEAD_BYTES + len(payload)
    data = path.read_bytes()[size:]
    if any(later.synced > position for later in _scattered(data)):
        raise damaged(path, position + 1)
    fd = os.open(path, os.O_RDWR)
    try:
        if data:
            os.ftruncate(fd, size)
        # What was written and not synced by a process that was killed is about to be believed.
        os.fsync(fd)
    finally:
        os.close(fd)
    return position


def damaged(path: Path, position: int) -> DigestMismatch:
    return DigestMismatch(
        f"the journal {path} is damaged at its entry {position}, which had been on disk: check the disk and bring the "
        "file back from a copy, or move all of the journal's files elsewhere; what they have and the store has not is "
        "lost then"
    )


def _scattered(data: bytes) -> Iterator[Head]:
    """Whole frames anywhere in what follows a broken one."""
    begin = data.find(MAGIC)
    while begin >= 0:
        found = records.head(data[begin : begin + HEAD_BYTES])
        if found is not None:
            payload = data[begin + HEAD_BYTES : begin + HEAD_BYTES + found.length]
            if len(payload) == found.length and found.holds(payload):
                yield found
        begin = data.find(MAGIC, begin + 1)
