"""Where the bytes of blobs come from, as a transfer sees it. Calls block: they are made in threads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from nearmesh.v1 import node_pb2 as pb


class Reader(Protocol):
    """A range of a blob on its way here."""

    def readinto(self, view: memoryview) -> int:
        """Fills as much of `view` as there is; 0 at the end. Raises Unreachable."""
        ...

    def close(self) -> None:
        """Whether everything was read or not."""
        ...


class Source(Protocol):
    """One place that has blobs."""

    def open(self, digest: str, offset: int, size: int, wait_s: float) -> Reader:
        """`wait_s`: how long to wait for each part that is on its way there.

        Raises NotFound, Overloaded, Unreachable; a reader may raise them as well.
        """
        ...

    def break_off(self) -> None:
        """Ends what is under way, in whatever thread that is. Safe to repeat."""
        ...


class Registry(Source, Protocol):
    """The source of last resort, which knows manifests too."""

    def manifest(self, reference: str) -> bytes:
        """By digest or tag; whoever asks checks it. Raises NotFound, Unreachable."""
        ...


class Peer(Source, Protocol):
    """A node of the mesh."""

    def here(self, digests: Collection[str]) -> Mapping[str, Sequence[tuple[int, int]]]:
        """Of each blob the ranges that lie on that node, first byte and end. Raises as `open`."""
        ...

    def close(self) -> None:
        """Once nobody asks it any more."""
        ...


class Peers(Protocol):
    """The nodes that have a version or are pulling it."""

    def of(self, digest: str) -> Sequence[pb.Holder]:
        """As the control plane said last."""
        ...

    def connect(self, holder: pb.Holder) -> Peer: ...


class NoPeers:
    """A node on its own."""

    def of(self, digest: str) -> Sequence[pb.Holder]:
        return ()

    def connect(self, holder: pb.Holder) -> Peer:
        raise AssertionError("there is nobody to connect to")


def read_all(source: Source, digest: str, size: int) -> bytes:
    """A whole small blob, unchecked. Raises as `open`."""
    data = bytearray(size)
    reader = source.open(digest, 0, size, 0.0)
    try:
        filled = fill(reader, memoryview(data))
    finally:
        reader.close()
    return bytes(data[:filled])


def fill(reader: Reader, view: memoryview) -> int:
    """Reads until `view` is full or there is no more; how much came."""
    filled = 0
    while filled < len(view):
        count = reader.readinto(view[filled:])
        if not count:
            break
        filled += count
    return filled
