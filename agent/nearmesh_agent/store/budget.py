"""What may lie on the disk, and what makes room for what is wanted. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nearmesh.errors import StorageFull


@dataclass(frozen=True, slots=True)
class Room:
    """The disk as it is: what models take on it, and what it has free."""

    used_bytes: int
    free_bytes: int
    # What models may take; 0: no limit but the disk.
    budget_bytes: int
    # What has to stay free on the disk.
    min_free_bytes: int

    def less(self, promised_bytes: int) -> Room:
        """As it is when what was promised to others lies there too."""
        return dataclasses.replace(
            self, used_bytes=self.used_bytes + promised_bytes, free_bytes=self.free_bytes - promised_bytes
        )

    @property
    def left_bytes(self) -> int:
        """What may still be put there."""
        left = self.free_bytes - self.min_free_bytes
        if self.budget_bytes:
            left = min(left, self.budget_bytes - self.used_bytes)
        return max(0, left)


@dataclass(frozen=True, slots=True)
class Stored:
    """A version on the disk, or what is here of one that is being pulled."""

    digest: str
    # What its removal would give back: files that no other version has.
    bytes: int
    wanted_at_s: float


def evict(room: Room, need_bytes: int, stored: Sequence[Stored], needed: Collection[str], what: str) -> list[Stored]:
    """What has to go before so many bytes more have room: of what nobody needs, the least recently wanted first.

    Raises StorageFull.
    """
    gone: list[Stored] = []
    missing = need_bytes - room.left_bytes
    for version in sorted(stored, key=lambda version: version.wanted_at_s):
        if missing <= 0:
            break
        if version.digest not in needed:
            gone.append(version)
            missing -= version.bytes
    if missing > 0:
        raise StorageFull(_full(room, need_bytes, what, sum(version.bytes for version in gone)))
    return gone


def _full(room: Room, need_bytes: int, what: str, evictable: int) -> str:
    limit = f"disk_budget_mib = {room.budget_bytes // 2**20}" if room.budget_bytes else "no disk_budget_mib"
    return (
        f"{what} needs {_mib(need_bytes)} more on the disk, and there is room for {_mib(room.left_bytes + evictable)}: "
        f"models take {_mib(room.used_bytes)}, {_mib(room.free_bytes)} are free ([store] {limit}, "
        f"min_free_mib = {room.min_free_bytes // 2**20}), and all else is wanted here or kept for a rollback. "
        "Raise the limit, make room on the disk, or want fewer models at this site"
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB" if size_bytes >= 2**20 else f"{size_bytes} bytes"
