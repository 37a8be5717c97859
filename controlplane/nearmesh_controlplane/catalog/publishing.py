"""How a version comes in: its manifest, then what is lacking of its blobs; answered when all is on disk and signed.

Of a file of which an older version is here, the publisher sends the chunks that are new and names the others. The file
is put together and proven as a whole, as if all of it had come.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping

from nearmesh import package as packages
from nearmesh import signature
from nearmesh.errors import Incomplete, InvalidInput, NotFound, PackageError, TooLarge
from nearmesh.lineage import Lineage
from nearmesh.oci import MANIFEST_TYPE, Descriptor, Manifest, digest_bytes
from nearmesh.oci_layout import BlobWriter, Layout
from nearmesh.package import MANIFEST_FILE, Package
from nearmesh.report import Report, check_published
from nearmesh.rpc import caller
from nearmesh.v1 import catalog_pb2 as pb
from nearmesh.whole import whole
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog import known_chunks
from nearmesh_controlplane.catalog.catalog import Catalog, Version
from nearmesh_controlplane.catalog.documents import Documents, differ_in_report_alone, document_of
from nearmesh_controlplane.catalog.known_chunks import Stretch
from nearmesh_controlplane.catalog.signing import Signing
from nearmesh_controlplane.idle.book import IdleBook
from nearmesh_controlplane.idle.store import take_package

log = logging.getLogger(__name__)

# Of one question; a publisher with more asks again.
MAX_ASKED = 100_000
# It is read whole, here and on nodes, which look at it before the weights have come.
MAX_TOML_BYTES = 1024 * 1024

Copied = Callable[[Version], Awaitable[None]]


async def by_nobody(_version: Version) -> None:
    return None


class Publisher:
    """Takes versions in."""

    def __init__(
        self,
        catalog: Catalog,
        layout: Layout,
        signing: Signing,
        audit: Audit,
        max_blob_bytes: int,
        copied: Copied = by_nobody,
        idle: IdleBook | None = None,
    ) -> None:
        """`copied` waits until other control planes have a version as well; `idle` reads what packages say of that."""
        self._idle = idle
        self._catalog = catalog
        self._layout = layout
        self._signing = signing
        self._audit = audit
        self._max_blob_bytes = max_blob_bytes
        self._copied = copied
        # What was measured of the versions that are here, and where those come from that rounds made.
        self.reports = Documents(layout, Report)
        self.lineages = Documents(layout, Lineage)

    async def lacks(self, request: pb.LacksRequest) -> pb.LacksResponse:
        """Which of the blobs and chunks have to be sent. Raises InvalidInput."""
        if len(request.blobs) + len(request.chunks) > MAX_ASKED:
            raise InvalidInput(f"asked for {len(request.blobs) + len(request.chunks)} digests; at most {MAX_ASKED}")
        known = await self._known(set(request.chunks))
        return pb.LacksResponse(
            blobs=[blob for blob in request.blobs if not self._layout.holds(blob)],
            chunks=[chunk for chunk in request.chunks if chunk not in known],
        )

    async def publish(self, requests: AsyncIterator[pb.PublishRequest]) -> Version:
        """Raises InvalidInput, PackageError, TooLarge, DigestMismatch, AlreadyExists, Incomplete."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "manifest_json":
            raise InvalidInput("publishing begins with the manifest")
        manifest, digest = Manifest.from_bytes(first.manifest_json), digest_bytes(first.manifest_json)
        self._check(manifest)
        if measured := await self._measured_elsewhere(manifest, digest):
            return measured
        known = self._catalog.check_new(manifest, digest)
        own = Descriptor(MANIFEST_TYPE, digest, len(first.manifest_json))
        missing = await asyncio.to_thread(self._missing, (own, *manifest.blobs))
        if known and not missing:
            return known
        missing.pop(digest, None)
        await self._receive(manifest, missing, requests)
        await asyncio.to_thread(self._check_index, manifest)
        store = functools.partial(self._store, manifest, first.manifest_json, digest)
        if known:
            await store()
            log.warning("replaced damaged blobs of model=%s version=%s", known.model, known.version)
            return known
        version = await self._add(manifest, digest, store)
        await self._copied(version)
        return version

    @whole
    async def pull_from(self, request: pb.PullFromRequest) -> Version:
        """Has nodes pull a version from elsewhere. Raises NotFound, InvalidInput."""
        version = await self._catalog.pull_from(request.model, request.version, request.registry)
        await self._record("pull-from", version, version.registry or "the mesh's own registry")
        return version

    async def _measured_elsewhere(self, manifest: Manifest, digest: str) -> Version | None:
        """The published version of that name, if it has the same files but for the report on its variants."""
        try:
            known = self._catalog.version(manifest.model, manifest.version)
        except NotFound:
            return None
        if known.digest == digest:
            return None
        same = await asyncio.to_thread(differ_in_report_alone, self._layout, known.digest, manifest)
        return known if same else None

    def _check(self, manifest: Manifest) -> None:
        if signature.signed_by(manifest.version):
            raise InvalidInput(f"version {manifest.version!r}: names such as this are those of signatures")
        for file in manifest.files:
            if file.title == MANIFEST_FILE and file.size_bytes > MAX_TOML_BYTES:
                raise TooLarge(f"{MANIFEST_FILE} has {file.size_bytes} bytes; at most {MAX_TOML_BYTES} are read")
        for blob in manifest.blobs:
            if blob.size_bytes > self._max_blob_bytes:
                raise TooLarge(
                    f"{blob.title or blob.digest} has {blob.size_bytes} bytes; max_blob_bytes is {self._max_blob_bytes}"
                )

    def _check_index(self, manifest: Manifest) -> None:
        """Whether its chunks make files of the right sizes: nodes would refuse it otherwise, one after the other."""
        index = known_chunks.index_of(self._layout, manifest)
        for file in manifest.files:
            index.check(file.digest, file.size_bytes)

    def _missing(self, blobs: Iterable[Descriptor]) -> dict[str, Descriptor]:
        """Those that are not there as they should be: never received, or damaged on the disk since."""
        return {blob.digest: blob for blob in blobs if not self._layout.has(blob)}

    async def _known(self, wanted: set[str], model: str = "") -> Mapping[str, Stretch]:
        if not wanted:
            return {}
        return await asyncio.to_thread(known_chunks.find, self._layout, list(self._manifests(model)), wanted)

    def _manifests(self, model: str) -> Iterator[str]:
        """Digests of all versions: those of the model first, of each the newest first."""
        for name in sorted(self._catalog.models(), key=lambda name: name != model):
            yield from (version.digest for version in self._catalog.versions(name))

    async def _receive(
        self, manifest: Manifest, missing: dict[str, Descriptor], requests: AsyncIterator[pb.PublishRequest]
    ) -> None:
        """Stores the missing blobs as they come, and takes them out of `missing`."""
        writer: BlobWriter | None = None
        current = ""
        known: Mapping[str, Stretch] | None = None
        try:
            async for request in requests:
                part = request.blob
                if part.digest != current:
                    await _commit(writer)
                    current = part.digest
                    writer = self._layout.writer(missing.pop(current)) if current in missing else None
                if writer and part.chunk:
                    if known is None:
                        known = await self._chunks_here(manifest)
                    await asyncio.to_thread(self._copy, part.chunk, known, writer)
                elif writer:
                    await asyncio.to_thread(writer.write, part.data)
            await _commit(writer)
        finally:
            if writer:
                writer.abandon()
        if missing:
            names = ", ".join(blob.title or blob.digest for blob in missing.values())
            raise Incomplete(f"the upload ended without {names}; nothing was published")

    async def _chunks_here(self, manifest: Manifest) -> Mapping[str, Stretch]:
        """Where the version's chunks lie that are here. Its index came before the files that are made from chunks."""
        if manifest.chunks is None or not self._layout.holds(manifest.chunks.digest):
            raise InvalidInput("chunks are named before the version's chunk index was sent")
        index = await asyncio.to_thread(known_chunks.index_of, self._layout, manifest)
        wanted = {chunk.digest for chunks in index.files.values() for chunk in chunks}
        return await self._known(wanted, manifest.model)

    def _copy(self, chunk: str, known: Mapping[str, Stretch], writer: BlobWriter) -> None:
        if chunk not in known:
            raise Incomplete(f"chunk {chunk} is not here; send it")
        writer.write(known[chunk].read(self._layout))

    async def _store(self, manifest: Manifest, manifest_json: bytes, digest: str) -> None:
        ref = f"{manifest.model}:{manifest.version}"
        await asyncio.to_thread(self._layout.add_manifest, manifest_json, digest, ref)
        await asyncio.to_thread(self._signing.signed, manifest.model, digest)

    @whole
    async def _add(self, manifest: Manifest, digest: str, store: Callable[[], Awaitable[None]]) -> Version:
        """Records a version whose blobs are all there."""
        package = self._package(manifest)
        digests = {file.title: file.digest for file in manifest.files}
        check_published(package, digests, document_of(Report, self._layout, manifest))
        # So that whoever reads it later finds what it should be.
        document_of(Lineage, self._layout, manifest)
        also = functools.partial(take_package, model=manifest.model, policy=package.idle)
        version = await self._catalog.add(manifest, digest, package.route, store, also)
        if self._idle:
            await self._idle.restore()
        await self._record("publish", version, digest)
        return version

    async def _record(self, action: str, version: Version, detail: str) -> None:
        await self._audit.record(caller(), action, f"{version.model}@{version.version}", detail)

    def _package(self, manifest: Manifest) -> Package:
        """The version's model.toml, checked against its manifest. Raises PackageError."""
        file = next((file for file in manifest.files if file.title == MANIFEST_FILE), None)
        if file is None:
            raise PackageError(f"the version has no {MANIFEST_FILE}")
        try:
            text = self._layout.path(file.digest).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise PackageError(f"{MANIFEST_FILE}: {error}") from None
        package = packages.parse(text, MANIFEST_FILE)
        if (package.name, package.version) != (manifest.model, manifest.version):
            raise PackageError(
                f"{MANIFEST_FILE} is of {package.name}@{package.version}, "
                f"the manifest of {manifest.model}@{manifest.version}"
            )
        return package


async def _commit(writer: BlobWriter | None) -> None:
    if writer:
        await asyncio.to_thread(writer.commit)
