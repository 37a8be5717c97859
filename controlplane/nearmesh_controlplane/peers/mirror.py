"""Every control plane holds every published version: what one was given, the others copy from it.

Over the pull API that nodes use. A version's manifest is stored last, so whoever has it has all of the version.
Publishing is acknowledged when the control planes that are there have copied it, so that the loss of one disk loses no
version.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from nearmesh.backoff import Backoff
from nearmesh.errors import DigestMismatch, MeshError, NotFound, Unreachable
from nearmesh.oci import MANIFEST_TYPE, MAX_MANIFEST_BYTES, Descriptor, Manifest, digest_bytes
from nearmesh.oci_layout import Layout
from nearmesh_controlplane.catalog.catalog import Catalog, Version
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.peers.role import Peer, Role
from nearmesh_controlplane.registry.authority import Authority

log = logging.getLogger(__name__)

# A request with this header comes from a control plane: what is not here is not looked for elsewhere.
ASKED_BY = "nearmesh-asked-by"
# Publishing waits for the others this long; after that the version is on this disk alone for the time being.
COPIED_WITHIN_S = 20.0
LOOK_EVERY_S = 0.1
# Who was not seen for this long is not waited for.
THERE_S = 5.0
AGAIN_S = (0.2, 5.0)
# Of one read or one connection, not of a whole file.
TIMEOUT_S = 10.0
TOKEN_S = 60.0
PART_BYTES = 1024 * 1024


class Mirror:
    """Copies what this control plane lacks."""

    def __init__(
        self,
        own: str,
        role: Role,
        layout: Layout,
        catalog: Catalog,
        authority: Authority,
        changes: Generation,
    ) -> None:
        """`own` is the id of this control plane."""
        self._own = own
        self._known, self._look = role.known, role.look
        self._layout = layout
        self._catalog = catalog
        self._issuer = authority.issuer
        self._tls = ssl.create_default_context(cadata=authority.ca_pem.decode())
        self._changes = changes
        # Digests of versions that are whole here.
        self._whole: set[str] = set()
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """For ever."""
        backoff = Backoff(*AGAIN_S)
        while True:
            seen = self._changes.value
            if await self._copy(self._versions()):
                backoff.reset()
                wait_s = None
            else:
                wait_s = backoff.next_s()
            await self._changes.above(seen, wait_s)

    async def fetch(self, model: str) -> None:
        """Copies what is missing of one model, for somebody who asks for it. Raises NotFound."""
        async with self._one_at_a_time:
            for version in self._catalog.versions(model):
                if not await asyncio.to_thread(self._all_there, version):
                    await self._from_any(version)

    async def copied(self, version: Version) -> None:
        """Waits until every control plane that is there has the version, or says in the log which has not."""
        self._whole.add(version.digest)
        end_s = time.monotonic() + COPIED_WITHIN_S
        while left := [peer for peer in await self._there() if not await asyncio.to_thread(self._has, peer, version)]:
            if time.monotonic() > end_s:
                names = ", ".join(peer.id for peer in left)
                log.warning("%s@%s is not on control plane %s yet", version.model, version.version, names)
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def _there(self) -> list[Peer]:
        """The others, without those that were not seen lately."""
        known = await self._look()
        newest_s = max((peer.seen_at_s for peer in known), default=0.0)
        return [peer for peer in known if peer.id != self._own and peer.seen_at_s > newest_s - THERE_S]

    def _versions(self) -> list[Version]:
        return [version for model in self._catalog.models() for version in self._catalog.versions(model)]

    def _others(self) -> list[Peer]:
        return [peer for peer in self._known() if peer.id != self._own]

    async def _copy(self, versions: Iterable[Version]) -> bool:
        """Whether all of them are here now."""
        left = [version for version in versions if not self._is_whole(version)]
        async with self._one_at_a_time:
            for version in left:
                if not self._is_whole(version):
                    await self._from_any(version)
        return all(map(self._is_whole, left))

    def _is_whole(self, version: Version) -> bool:
        if version.digest not in self._whole and self._is_here(version.digest):
            self._whole.add(version.digest)
        return version.digest in self._whole

    def _is_here(self, digest: str) -> bool:
        try:
            self._layout.path(digest)
        except NotFound:
            return False
        return True

    async def _from_any(self, version: Version) -> None:
        for peer in self._others():
            try:
                await asyncio.to_thread(self._from, peer, version)
            except (MeshError, OSError) as error:
                log.info("%s@%s was not copied from %s: %s", version.model, version.version, peer.id, error)
            else:
                self._whole.add(version.digest)
                log.info("copied model=%s version=%s from=%s", version.model, version.version, peer.id)
                return

    # In a thread

    def _all_there(self, version: Version) -> bool:
        if not self._is_here(version.digest):
            return False
        manifest = Manifest.from_bytes(self._layout.path(version.digest).read_bytes())
        return all(self._is_here(blob.digest) for blob in manifest.blobs)

    def _from(self, peer: Peer, version: Version) -> None:
        with self._open(peer, version.model, "manifests", version.digest) as answer:
            manifest_bytes = answer.read(MAX_MANIFEST_BYTES + 1)
        if digest_bytes(manifest_bytes) != version.digest:
            raise DigestMismatch(f"{peer.id} gave another manifest than {version.digest}")
        manifest = Manifest.from_bytes(manifest_bytes)
        for blob in manifest.blobs:
            if not self._layout.has(blob):
                self._blob(peer, version.model, blob)
        self._layout.add_manifest(manifest_bytes, version.digest, f"{version.model}:{version.version}")

    def _blob(self, peer: Peer, model: str, blob: Descriptor) -> None:
        writer = self._layout.writer(blob)
        try:
            with self._open(peer, model, "blobs", blob.digest) as answer:
                while part := answer.read(PART_BYTES):
                    writer.write(part)
            writer.commit()
        finally:
            writer.abandon()

    def _has(self, peer: Peer, version: Version) -> bool:
        try:
            with self._open(peer, version.model, "manifests", version.digest, method="HEAD"):
                return True
        except MeshError:
            return False

    def _open(self, peer: Peer, model: str, kind: str, digest: str, method: str = "GET") -> Any:
        token = self._issuer.access(f"control-plane-{self._own}", "client", now_s=time.time(), lifetime_s=TOKEN_S)
        headers = {"Authorization": f"Bearer {token}", ASKED_BY: self._own, "Accept": MANIFEST_TYPE}
        url = f"https://{peer.http}/v2/{model}/{kind}/{digest}"
        try:
            return urllib.request.urlopen(
                urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT_S, context=self._tls
            )
        except (urllib.error.URLError, http.client.HTTPException) as error:
            raise Unreachable(f"{url}: {error}") from None
