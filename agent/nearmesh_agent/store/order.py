"""What a pull is told: what to bring, from where, and with what; and what it tells of how far it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from nearmesh.oci import Descriptor
from nearmesh_agent.store.baked import Baked
from nearmesh_agent.store.bandwidth import Bandwidth
from nearmesh_agent.store.disk import Disk
from nearmesh_agent.store.pieces import Pieces
from nearmesh_agent.store.shelf import Shelf
from nearmesh_agent.store.source import Peers, Registry

# Files up to this size come first: with them the node can look at the package while the weights come.
SMALL_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What all pulls of a node have in common."""

    me: str
    disk: Disk
    shelf: Shelf
    baked: Baked
    bandwidth: Bandwidth
    # For work on the disk, and for reads from others, of all pulls.
    pool: Executor
    reads: Executor
    # Makes room for so many bytes of a version. Raises StorageFull.
    make_room: Callable[[int, str], Awaitable[None]]
    # Keeps blobs of a version from being removed; waits until no other pull brings one of the large ones, and has
    # others wait until this one is done.
    claim: Callable[[str, Collection[Descriptor]], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be had, and from where."""

    model: str
    digest: str
    registry: Registry
    peers: Peers
    # By these it has to be signed; none: by nobody.
    keys_pem: Sequence[str] = ()
    # Hears, in a thread, where the small files lie when they are here; what it raises ends the pull.
    look: Callable[[Mapping[str, Path]], None] | None = None


@dataclass(slots=True)
class Progress:
    """How far a pull has come."""

    total_bytes: int = 0
    # Of blobs that have not been looked at yet.
    waiting_bytes: int = 0
    # There is room for them, which nobody else may take.
    has_room: bool = False
    blobs: list[Pieces] = field(default_factory=list)
    # By who or what brought them, bytes.
    brought: dict[str, int] = field(default_factory=dict)

    def add(self, source: str, size_bytes: int) -> None:
        self.brought[source] = self.brought.get(source, 0) + size_bytes

    @property
    def promised_bytes(self) -> int:
        """Of files that are to lie here, and do not take their room on the disk yet."""
        return self.waiting_bytes if self.has_room else 0

    @property
    def here_bytes(self) -> int:
        return self.total_bytes - self.waiting_bytes - sum(pieces.left_bytes for pieces in self.blobs)
