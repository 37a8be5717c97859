"""One version's way onto this disk: manifest, signature, room, small files, then the large ones from all sides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from nearmesh.chunks import Chunk, ChunkIndex
from nearmesh.errors import DigestMismatch, MeshError, Unreachable
from nearmesh.oci import MAX_MANIFEST_BYTES, Descriptor, Manifest, digest_bytes, digest_file
from nearmesh_agent.store import known, proofs
from nearmesh_agent.store.baked import Baked
from nearmesh_agent.store.bandwidth import Bandwidth
from nearmesh_agent.store.disk import CHUNKS, CONFIG, SIGNATURE, Disk
from nearmesh_agent.store.draft import Draft
from nearmesh_agent.store.pieces import COMING, MISSING, Pieces
from nearmesh_agent.store.planner import Planner
from nearmesh_agent.store.shelf import Shelf
from nearmesh_agent.store.source import Peers, Registry, read_all
from nearmesh_agent.store.transfer import Outlets, Transfer

log = logging.getLogger(__name__)

# Files up to this size come first: with them the node can look at the package while the weights come.
SMALL_BYTES = 1024 * 1024
# So much is hashed in one go.
HASH_BYTES = 4 * 1024 * 1024


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
    blobs: list[Pieces] = field(default_factory=list)

    @property
    def here_bytes(self) -> int:
        return self.total_bytes - self.waiting_bytes - sum(pieces.left_bytes for pieces in self.blobs)


class Pull:
    """`run` may be called once."""

    def __init__(self, means: Means, order: Order) -> None:
        self._means = means
        self._order = order
        self.progress = Progress()
        # By digest, where the version's blobs lie.
        self._places: dict[str, Path] = {}
        # Bytes by where they came from, for whoever wants to know.
        self.brought: dict[str, int] = {}

    async def run(self) -> tuple[Manifest, Path]:
        """Raises DigestMismatch, NotFound, PackageError, SignatureError, StorageFull, Unreachable, OSError."""
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(self._means.reads, self._manifest)
        proof = await loop.run_in_executor(self._means.reads, self._proofs)
        manifest = Manifest.from_bytes(data)
        async with self._means.claim(self._order.digest, manifest.blobs):
            return await self._bring_all(manifest, data, proof)

    async def _bring_all(self, manifest: Manifest, data: bytes, proof: Sequence[proofs.Proof]) -> tuple[Manifest, Path]:
        means, order = self._means, self._order
        await self._find(manifest)
        missing = [blob for blob in manifest.blobs if blob.digest not in self._places]
        self.progress.total_bytes = manifest.size_bytes
        self.progress.waiting_bytes = sum(blob.size_bytes for blob in missing)
        name = f"{manifest.model}@{manifest.version}"
        need = means.disk.missing_bytes(order.digest, missing)
        await means.make_room(need, name)
        large = [blob for blob in missing if blob.size_bytes > SMALL_BYTES and blob != manifest.chunks]
        await self._fetch([blob for blob in missing if blob not in large], ChunkIndex(), share=False)
        index = await self._index(manifest)
        await _together(self._fetch(large, index, share=True), self._look(manifest))
        more: dict[str, Path | bytes] = {CONFIG: self._places[manifest.config.digest]}
        if proof:
            more[SIGNATURE] = proofs.to_bytes(proof)
        if manifest.chunks:
            more[CHUNKS] = self._places[manifest.chunks.digest]
        found: tuple[Manifest, Path] = await self._to_its_end(
            means.disk.assemble, order.digest, data, self._places, more
        )
        log.info("pulled model=%s version=%s digest=%s %s", order.model, manifest.version, order.digest, self._said())
        return found

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._means.pool, partial(work, *arguments))

    async def _to_its_end(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """As `_in_thread`, for what moves files: the next pull of the version is not to meet it half done."""
        future = asyncio.get_running_loop().run_in_executor(self._means.pool, partial(work, *arguments))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                # Whoever is impatient has been heard already.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({future})
            raise

    # What comes first.

    def _manifest(self) -> bytes:
        order = self._order
        data = self._means.baked.small(order.digest)
        if data is None:
            try:
                data = order.registry.manifest(order.digest)
            except Unreachable:
                data = self._manifest_of_a_node()
                if data is None:
                    raise
        if len(data) > MAX_MANIFEST_BYTES or digest_bytes(data) != order.digest:
            raise DigestMismatch(
                f"the registry's manifest of {order.model} is {digest_bytes(data)}, wanted {order.digest}"
            )
        return data

    def _manifest_of_a_node(self) -> bytes | None:
        """While the registry is away: of any node that has the version."""
        for holder in self._order.peers.of(self._order.digest):
            peer = self._order.peers.connect(holder)
            try:
                for _, end in peer.here([self._order.digest]).get(self._order.digest, ()):
                    data = read_all(peer, self._order.digest, min(end, MAX_MANIFEST_BYTES))
                    if digest_bytes(data) == self._order.digest:
                        return data
            except MeshError as error:
                log.info("node=%s gave no manifest: %s", holder.node, error.message)
            finally:
                peer.close()
        return None

    def _proofs(self) -> list[proofs.Proof]:
        """Checked; none where no keys were given. Raises SignatureError, Unreachable."""
        order = self._order
        if not order.keys_pem:
            return []
        try:
            found = proofs.from_image(self._means.baked, order.digest)
            proofs.check(order.keys_pem, order.digest, found)
            return found
        except MeshError:
            found = proofs.from_registry(order.registry, order.digest)
        proofs.check(order.keys_pem, order.digest, found)
        return found

    async def _find(self, manifest: Manifest) -> None:
        """What of the version lies on this machine already."""
        for blob in manifest.blobs:
            path = await self._in_thread(self._found, blob)
            if path:
                self._places[blob.digest] = path

    def _found(self, blob: Descriptor) -> Path | None:
        path = self._means.disk.blob(blob.digest)
        if path.exists() and digest_file(path) == blob.digest:
            return path
        return self._means.baked.blob(blob)

    async def _index(self, manifest: Manifest) -> ChunkIndex:
        """Of the version's chunks; raises PackageError."""
        if manifest.chunks is None:
            return ChunkIndex()
        data = await self._in_thread(self._places[manifest.chunks.digest].read_bytes)
        found: ChunkIndex = await self._in_thread(ChunkIndex.from_bytes, data)
        return found

    async def _look(self, manifest: Manifest) -> None:
        """Has the node look at the package while its weights come."""
        if self._order.look:
            small = {file.title: self._places[file.digest] for file in manifest.files if file.digest in self._places}
            await self._in_thread(self._order.look, small)

    # The blobs themselves.

    async def _fetch(self, blobs: Iterable[Descriptor], index: ChunkIndex, *, share: bool) -> None:
        drafts: dict[str, Draft] = {}
        stop = threading.Event()
        try:
            for blob in blobs:
                pieces = Pieces(blob, _chunks(blob, index))
                draft = drafts[blob.digest] = Draft(self._means.disk.drafts_of(self._order.digest), pieces)
                here = await self._in_thread(draft.open)
                for number in here:
                    pieces.arrived(number)
                if here:
                    log.info("taken up model=%s blob=%s chunks=%d", self._order.model, blob.digest, len(here))
                self.progress.blobs.append(pieces)
                self.progress.waiting_bytes -= blob.size_bytes
                self._means.shelf.put(draft)
            if drafts:
                await self._bring(drafts, stop, share=share)
        finally:
            stop.set()
            for digest, draft in drafts.items():
                draft.close()
                self._means.shelf.take(digest)

    async def _bring(self, drafts: Mapping[str, Draft], stop: threading.Event, *, share: bool) -> None:
        news, order, shelf = asyncio.Event(), self._order, self._means.shelf

        def arrived(digest: str, number: int) -> None:
            shelf.arrived(digest, number)
            news.set()

        copies = await self._in_thread(self._known, drafts)
        for copy in copies:
            copy.pieces.state[copy.number] = COMING
        news.set()
        transfer = Transfer(
            Planner(self._means.me, [draft.pieces for draft in drafts.values()]),
            drafts,
            Outlets(digest=order.digest, registry=order.registry, peers=order.peers, share=share),
            pool=self._means.reads,
            bandwidth=self._means.bandwidth,
            arrived=arrived,
        )
        try:
            await _together(transfer.run(), self._settle(drafts, news), self._copy(copies, drafts, arrived, stop))
        finally:
            for name, size in transfer.brought.items():
                self.brought[name] = self.brought.get(name, 0) + size

    async def _settle(self, drafts: Mapping[str, Draft], news: asyncio.Event) -> None:
        """Hashes each file as it comes, and puts it in its place when it is whole."""
        left = dict(drafts)
        while left:
            await news.wait()
            news.clear()
            for digest, draft in list(left.items()):
                if not draft.pieces.left:
                    target = self._means.disk.blob(digest)
                    await self._to_its_end(draft.finish, target)
                    self._places[digest] = target
                    self._means.shelf.take(digest)
                    del left[digest]
                elif draft.behind_bytes >= HASH_BYTES:
                    await self._in_thread(draft.hash_on)

    def _known(self, drafts: Mapping[str, Draft]) -> list[known.Copy]:
        """In a thread: what other versions on this disk have of it."""
        disk = self._means.disk
        indexes = []
        for digest, manifest, folder in disk.manifests():
            if digest != self._order.digest and manifest.chunks:
                files = {file.digest: folder / file.title for file in manifest.files}
                indexes.append((known.read_index(folder / CHUNKS), files.get))
        return known.find((draft.pieces for draft in drafts.values()), indexes) if indexes else []

    async def _copy(
        self,
        copies: Sequence[known.Copy],
        drafts: Mapping[str, Draft],
        arrived: Callable[[str, int], None],
        stop: threading.Event,
    ) -> None:
        loop = asyncio.get_running_loop()

        def came(copy: known.Copy) -> None:
            copy.pieces.arrived(copy.number)
            self.brought["this disk"] = self.brought.get("this disk", 0) + copy.pieces.chunks[copy.number].size_bytes
            arrived(copy.pieces.digest, copy.number)

        if copies:
            told = partial[Any](loop.call_soon_threadsafe, cast(Any, came))
            await self._in_thread(known.copy, copies, drafts, told, stop)
            for copy in copies:
                # What was not there any more, or not right, is fetched.
                if copy.pieces.state[copy.number] == COMING:
                    copy.pieces.state[copy.number] = MISSING

    def _said(self) -> str:
        return " ".join(f"{name.replace(' ', '_')}={size}" for name, size in sorted(self.brought.items()))


def _chunks(blob: Descriptor, index: ChunkIndex) -> tuple[Chunk, ...]:
    """Raises PackageError where the index does not fit the blob."""
    chunks = index.check(blob.digest, blob.size_bytes)
    if not chunks and 0 < blob.size_bytes <= SMALL_BYTES:
        return (Chunk(0, blob.size_bytes, blob.digest),)
    return chunks


async def _together(*work: Awaitable[None]) -> None:
    """All of it, or the first error, once the others have ended too."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
