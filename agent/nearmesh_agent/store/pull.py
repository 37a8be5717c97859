"""One version's way onto this disk: manifest, signature, room, small files, then the large ones from all sides."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from nearmesh.chunks import ChunkIndex
from nearmesh.errors import DigestMismatch, MeshError
from nearmesh.oci import MAX_MANIFEST_BYTES, Descriptor, Manifest, digest_bytes, digest_file
from nearmesh_agent.store import proofs
from nearmesh_agent.store.disk import CHUNKS, CONFIG, SIGNATURE
from nearmesh_agent.store.fetch import Fetch
from nearmesh_agent.store.order import SMALL_BYTES, Means, Order, Progress
from nearmesh_agent.store.threads import in_thread, to_its_end, together

log = logging.getLogger(__name__)


class Pull:
    """`run` may be called once."""

    def __init__(self, means: Means, order: Order) -> None:
        self._means = means
        self._order = order
        self.progress = Progress()
        self._fetch = Fetch(means, order, self.progress)
        # By digest, where the version's blobs lie.
        self._places = self._fetch.places

    async def run(self) -> tuple[Manifest, Path]:
        """Raises DigestMismatch, NotFound, PackageError, SignatureError, StorageFull, Unreachable, OSError."""
        data = await in_thread(self._means.reads, self._manifest)
        proof = await in_thread(self._means.reads, self._proofs)
        manifest = Manifest.from_bytes(data)
        async with self._means.claim(self._order.digest, manifest.node_blobs):
            return await self._bring_all(manifest, data, proof)

    async def _bring_all(self, manifest: Manifest, data: bytes, proof: Sequence[proofs.Proof]) -> tuple[Manifest, Path]:
        means, order = self._means, self._order
        await self._find(manifest)
        missing = [blob for blob in manifest.node_blobs if blob.digest not in self._places]
        self.progress.total_bytes = sum(blob.size_bytes for blob in manifest.node_blobs)
        self.progress.waiting_bytes = sum(blob.size_bytes for blob in missing)
        name = f"{manifest.model}@{manifest.version}"
        need = means.disk.missing_bytes(order.digest, missing)
        await means.make_room(need, name)
        self.progress.has_room = True
        large = [blob for blob in missing if blob.size_bytes > SMALL_BYTES and blob != manifest.chunks]
        await self._fetch.run([blob for blob in missing if blob not in large], ChunkIndex(), share=False)
        index = await self._index(manifest)
        await together(self._fetch.run(large, index, share=True), self._look(manifest))
        more: dict[str, Path | bytes] = {CONFIG: self._places[manifest.config.digest]}
        if proof:
            more[SIGNATURE] = proofs.to_bytes(proof)
        if manifest.chunks:
            more[CHUNKS] = self._places[manifest.chunks.digest]
        found: tuple[Manifest, Path] = await to_its_end(
            means.pool, means.disk.assemble, order.digest, data, self._places, more
        )
        log.info("pulled model=%s version=%s digest=%s %s", order.model, manifest.version, order.digest, self._said())
        return found

    # What comes first.

    def _manifest(self) -> bytes:
        order = self._order
        data = self._means.baked.small(order.digest)
        if data is None:
            data = order.registry.manifest(order.digest)
        if len(data) > MAX_MANIFEST_BYTES or digest_bytes(data) != order.digest:
            raise DigestMismatch(
                f"the registry's manifest of {order.model} is {digest_bytes(data)}, wanted {order.digest}"
            )
        return data

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
        for blob in manifest.node_blobs:
            path = await in_thread(self._means.pool, self._found, blob)
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
        data = await in_thread(self._means.pool, self._places[manifest.chunks.digest].read_bytes)
        found: ChunkIndex = await in_thread(self._means.pool, ChunkIndex.from_bytes, data)
        return found

    async def _look(self, manifest: Manifest) -> None:
        """Has the node look at the package while its weights come."""
        if self._order.look:
            small = {file.title: self._places[file.digest] for file in manifest.files if file.digest in self._places}
            await in_thread(self._means.pool, self._order.look, small)

    def _said(self) -> str:
        return " ".join(f"{name.replace(' ', '_')}={size}" for name, size in sorted(self.progress.brought.items()))
