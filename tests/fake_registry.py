"""A registry with one version, for tests of pulling: as much as a node's store asks for, in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from nearmesh_agent.store.source import Reader

from nearmesh.chunks import CHUNKS_TYPE
from nearmesh.errors import DigestMismatch, NotFound, Unreachable
from nearmesh.oci import CONFIG_TYPE, WEIGHT_TYPE, Descriptor, Manifest, digest_bytes

FILES = {"model.toml": b"name", "fp32.onnx": b"weights" * 1000, "empty": b""}
CONFIG = b"{}"


def manifest_of(files: Mapping[str, bytes], version: str = "1", chunks: bytes | None = None) -> Manifest:
    """Of a model `m` with these files, and a chunk index."""
    return Manifest(
        "m",
        version,
        Descriptor(CONFIG_TYPE, digest_bytes(CONFIG), len(CONFIG)),
        tuple(Descriptor(WEIGHT_TYPE, digest_bytes(data), len(data), title) for title, data in files.items()),
        Descriptor(CHUNKS_TYPE, digest_bytes(chunks), len(chunks), "nearmesh.chunks.json") if chunks else None,
    )


MANIFEST = manifest_of(FILES).to_bytes()
DIGEST = digest_bytes(MANIFEST)


class FakeRegistry:
    """Answers as a registry should, until a test changes what it has. A Registry and a Peer."""

    def __init__(self, manifest: bytes = MANIFEST, files: Mapping[str, bytes] = FILES, *more: bytes) -> None:
        self.manifests = {digest_bytes(manifest): manifest}
        self.blobs = {digest_bytes(data): data for data in (CONFIG, *files.values(), *more)}
        # What was asked for: manifests by reference, and of blobs digest, first byte and size.
        self.asked: list[str] = []
        self.reads: list[tuple[str, int, int]] = []
        self.sent_bytes = 0
        self.error: Exception | None = None
        # Called before each read, in its thread; it may raise.
        self.before: Callable[[str, int, int], None] = lambda digest, offset, size: None
        self.closed = False
        self._lock = threading.Lock()

    def manifest(self, reference: str) -> bytes:
        self._ask(reference)
        if reference not in self.manifests:
            raise NotFound(f"the registry has no manifest {reference}")
        return self.manifests[reference]

    def open(self, digest: str, offset: int, size: int, wait_s: float) -> Reader:
        self._ask(digest)
        with self._lock:
            self.reads.append((digest, offset, size))
        self.before(digest, offset, size)
        data = self.blobs.get(digest)
        if data is None:
            raise NotFound(f"the registry has no blob {digest}")
        if offset + size > len(data):
            raise DigestMismatch(f"{digest} has {len(data)} bytes in the registry, fewer than the version says")
        return FakeReader(self, data[offset : offset + size])

    def here(self, digests: object) -> Mapping[str, list[tuple[int, int]]]:
        return {}

    def break_off(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        if self.error:
            raise self.error

    @property
    def weights(self) -> str:
        return digest_bytes(FILES["fp32.onnx"])


class FakeReader:
    """Gives what was asked for in parts."""

    def __init__(self, registry: FakeRegistry, data: bytes, *, broken_at: int | None = None) -> None:
        self._registry = registry
        self._data = memoryview(data)
        self._broken_at = broken_at
        self._at = 0

    def readinto(self, view: memoryview) -> int:
        if self._broken_at is not None and self._at >= self._broken_at:
            raise Unreachable("connection reset")
        count = min(len(view), len(self._data) - self._at, 10_000)
        view[:count] = self._data[self._at : self._at + count]
        self._at += count
        with self._registry._lock:
            self._registry.sent_bytes += count
        return count

    def close(self) -> None:
        pass
