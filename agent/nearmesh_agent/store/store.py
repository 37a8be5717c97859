"""Model versions on this node's disk: pulled by digest from nodes or a registry, verified, kept for the next start.

What is in a version's folder was whole and right when it was put there, and is verified again before it is loaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nearmesh.errors import DigestMismatch, InvalidInput, SignatureError
from nearmesh.oci import Descriptor, Manifest
from nearmesh_agent.config import StoreConfig
from nearmesh_agent.store import proofs
from nearmesh_agent.store.baked import Baked
from nearmesh_agent.store.bandwidth import Bandwidth
from nearmesh_agent.store.budget import Room, evict
from nearmesh_agent.store.disk import MANIFEST, SIGNATURE, Disk
from nearmesh_agent.store.order import SMALL_BYTES, Means, Order
from nearmesh_agent.store.pull import Pull
from nearmesh_agent.store.shelf import Shelf
from nearmesh_agent.store.source import NoPeers, Peers, Registry
from nearmesh_agent.store.threads import READER_THREADS
from nearmesh_agent.store.transfer import REGISTRY

log = logging.getLogger(__name__)

# Of all pulls together. More pulls than that wait for each other's reads.
READERS, WORKERS = 64, 6


class ModelStore:
    """The versions below one folder. Belongs to one event loop; `close` ends its threads."""

    def __init__(
        self,
        folder: Path,
        config: StoreConfig | None = None,
        *,
        me: str = "",
        needed: Callable[[], Collection[str]] = frozenset,
        brought: Callable[[Mapping[str, int]], None] = lambda sizes: None,
    ) -> None:
        """`me` is the node's id; `needed` says which versions must stay whatever else has to go.

        `brought` hears at the end of each pull how many bytes came from where.
        """
        self._config = config or StoreConfig()
        self._needed = needed
        self._brought = brought
        self._disk = Disk(folder)
        self._baked = Baked(self._config.baked)
        self.shelf = Shelf(self._whole)
        self._reads = ThreadPoolExecutor(READERS, thread_name_prefix=READER_THREADS)
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="store")
        self._means = Means(
            me=me,
            disk=self._disk,
            shelf=self.shelf,
            baked=self._baked,
            bandwidth=Bandwidth(self._config.bandwidth_mbit_s * 1e6 / 8),
            pool=self._pool,
            reads=self._reads,
            make_room=self._make_room,
            claim=self._claim,
        )
        # By digest. While a version is pulled, blobs lie here that no version links to yet.
        self._pulls: dict[str, Pull] = {}
        self._coming: dict[str, frozenset[str]] = {}
        self._claimed: set[str] = set()
        self._freed = asyncio.Event()
        self._removing = asyncio.Lock()
        self._proven: set[str] = set()
        # What may still be put on the disk, as of the last time that something changed there.
        self.free_bytes = self._room().left_bytes

    # What is here.

    def find(self, digest: str) -> tuple[Manifest, Path] | None:
        """The version's manifest and folder if all of it is here and right; what is damaged is put aside. Blocks."""
        return self._disk.find(digest)

    async def held(self, digest: str, keys_pem: Sequence[str] = ()) -> tuple[Manifest, Path] | None:
        """As `find`, and signed by one of the keys, if there are any; what is being removed is not found."""
        async with self._removing:
            found: tuple[Manifest, Path] | None = await self._in_thread(self._find_proven, digest, keys_pem)
        (self._proven.add if found else self._proven.discard)(digest)
        return found

    def _find_proven(self, digest: str, keys_pem: Sequence[str]) -> tuple[Manifest, Path] | None:
        found = self._disk.find(digest)
        if found and keys_pem:
            try:
                data = (found[1] / SIGNATURE).read_bytes() if (found[1] / SIGNATURE).exists() else b"[]"
                proofs.check(keys_pem, digest, proofs.from_bytes(data))
            except SignatureError as error:
                log.warning("asking for the signature again: %s", error.message)
                return None
        return found

    @property
    def proven(self) -> list[str]:
        """Digests of versions that were found or pulled, and lie here."""
        return sorted(self._proven)

    def progress(self, digest: str) -> tuple[int, int]:
        """Of a version that is being pulled, its bytes and those that are here; zeros when it is not."""
        pull = self._pulls.get(digest)
        return (pull.progress.total_bytes, pull.progress.here_bytes) if pull else (0, 0)

    def _whole(self, digest: str) -> Path | None:
        """What other nodes can have: a blob, or a version's manifest."""
        try:
            for path in (self._disk.blob(digest), self._disk.folder(digest) / MANIFEST):
                if path.is_file():
                    return path
        except InvalidInput:
            return None
        return self._baked.path(digest)

    # What comes.

    async def pull(
        self,
        model: str,
        digest: str,
        registry: Registry,
        *,
        peers: Peers | None = None,
        keys_pem: Sequence[str] = (),
        look: Callable[[Mapping[str, Path]], None] | None = None,
    ) -> tuple[Manifest, Path]:
        """The version, from disk, from nodes or from the registry.

        Raises DigestMismatch, NotFound, PackageError, SignatureError, StorageFull, Unreachable, OSError.
        """
        found = await self.held(digest, keys_pem)
        if found:
            return found
        order = Order(
            model=model, digest=digest, registry=registry, peers=peers or NoPeers(), keys_pem=keys_pem, look=look
        )
        async with self._removing:
            pull = self._pulls[digest] = Pull(self._means, order)
        try:
            found = await self._pull(pull, order)
        finally:
            self.free_bytes = await self._in_thread(lambda: self._room().left_bytes)
        self._proven.add(digest)
        return found

    async def _pull(self, pull: Pull, order: Order) -> tuple[Manifest, Path]:
        try:
            return await self._run(pull, order.digest)
        except DigestMismatch as error:
            if not pull.progress.brought.keys() - {REGISTRY}:
                raise
            # Where a version has no chunk index, nobody can say whose part of a large file was wrong.
            log.warning("pulling again from the registry alone: %s", error.message)
        alone = Order(
            model=order.model, digest=order.digest, registry=order.registry, peers=NoPeers(), keys_pem=order.keys_pem
        )
        return await self._run(Pull(self._means, alone), order.digest)

    async def _run(self, pull: Pull, digest: str) -> tuple[Manifest, Path]:
        self._pulls[digest] = pull
        try:
            return await pull.run()
        finally:
            # One that is broken off may end after the next one of its version has begun.
            if self._pulls.get(digest) is pull:
                del self._pulls[digest]
            self._brought(pull.progress.brought)

    @asynccontextmanager
    async def _claim(self, digest: str, blobs: Collection[Descriptor]) -> AsyncIterator[None]:
        """Of two pulls that need the same large blob, the second finds it when the first has it."""
        large = {blob.digest for blob in blobs if blob.size_bytes > SMALL_BYTES}
        while self._claimed & large:
            await self._freed.wait()
        self._claimed |= large
        self._coming[digest] = frozenset(blob.digest for blob in blobs)
        try:
            yield
        finally:
            self._coming.pop(digest, None)
            self._claimed -= large
            self._freed.set()
            self._freed = asyncio.Event()

    # What goes.

    async def keep_only(self, needed: Callable[[], Collection[str]]) -> None:
        """Removes versions that are not `needed`, and the blobs that none links to; not while one is pulled.

        With a disk budget they stay within it, the least recently wanted go. `needed` is asked at the last moment. What
        the disk refuses is logged, and left to the next time.
        """
        async with self._removing:
            if self._pulls:
                return
            try:
                await self._in_thread(self._tidy, set(needed()))
            except OSError as error:
                log.warning("old versions could not be removed: %s", error)

    def _tidy(self, needed: Collection[str]) -> None:
        self._disk.wanted(needed)
        stored, room = self._disk.stored(), self._room()
        gone = [version for version in stored if version.digest not in needed]
        if self._config.disk_budget_mib:
            over = sorted(gone, key=lambda version: version.wanted_at_s)
            excess = room.used_bytes - room.budget_bytes
            gone = []
            while over and excess > 0:
                gone.append(over.pop(0))
                excess -= gone[-1].bytes
        self._remove([version.digest for version in gone], ())

    async def _make_room(self, need_bytes: int, name: str) -> None:
        async with self._removing:
            needed = {*self._needed(), *self._pulls}
            promised_bytes = sum(pull.progress.promised_bytes for pull in self._pulls.values())
            await self._in_thread(self._evict, need_bytes, name, needed, promised_bytes)

    def _evict(self, need_bytes: int, name: str, needed: Collection[str], promised_bytes: int) -> None:
        self._disk.wanted(needed)
        room = self._room().less(promised_bytes)
        if need_bytes > room.left_bytes:
            gone = evict(room, need_bytes, self._disk.stored(), needed, name)
            self._remove([version.digest for version in gone], frozenset().union(*self._coming.values()))

    def _remove(self, digests: Collection[str], keep_blobs: Collection[str]) -> None:
        self._disk.remove(digests, keep_blobs)
        self._proven.difference_update(digests)
        self.free_bytes = self._room().left_bytes

    def _room(self) -> Room:
        return self._disk.room(self._config.disk_budget_mib * 2**20, self._config.min_free_mib * 2**20)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *arguments))

    def close(self) -> None:
        """Pulls have ended by now. A thread that hangs is not waited for."""
        for pool in (self._reads, self._pool):
            pool.shutdown(wait=False, cancel_futures=True)
