"""Model versions on this node's disk: pulled by digest over the OCI API, verified, and kept for the next start.

Blobs lie by digest; each version is a folder of hard links to them under the names that the package gives them. What
is in a version's folder was whole and right when it was put there, and is verified again before it is loaded.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO

import httpx

from nearmesh.errors import DigestMismatch, MeshError, NotFound, Unreachable
from nearmesh.ids import check_digest
from nearmesh.oci import MANIFEST_TYPE, MAX_MANIFEST_BYTES, Descriptor, Manifest, digest_bytes, digest_file
from nearmesh.tls import fsync_folder, write_private

log = logging.getLogger(__name__)

PULL_TIMEOUT = httpx.Timeout(30.0, connect=10.0)

_MANIFEST = "manifest.json"


class ModelStore:
    """The versions below one folder."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"
        self._versions = folder / "versions"
        for each in (self._blobs, self._versions):
            each.mkdir(parents=True, exist_ok=True)
            for stale in each.glob(".incoming-*"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        # While a version is pulled, blobs lie here that no version links to yet: nothing is removed meanwhile.
        self._pulls = 0
        self._removing = asyncio.Lock()

    def find(self, digest: str) -> tuple[Manifest, Path] | None:
        """The version's manifest and folder if all of it is here and right; what is damaged is put aside."""
        folder = self._versions / _hex(digest)
        try:
            data = (folder / _MANIFEST).read_bytes()
            if digest_bytes(data) != digest:
                raise DigestMismatch(f"the stored manifest of {digest} is damaged")
            manifest = Manifest.from_bytes(data)
            for file in manifest.files:
                if digest_file(folder / file.title) != file.digest:
                    raise DigestMismatch(f"the stored {file.title} of {digest} is damaged")
        except FileNotFoundError:
            return None
        except (MeshError, OSError) as error:
            log.warning("discarding a damaged version: %s", error)
            self._discard(folder)
            return None
        return manifest, folder

    async def pull(self, model: str, digest: str, client: httpx.AsyncClient) -> tuple[Manifest, Path]:
        """The version, from disk or from the registry. Raises DigestMismatch, NotFound, PackageError, Unreachable."""
        found = await self.held(digest)
        if found:
            return found
        async with self._removing:
            self._pulls += 1
        try:
            return await self._pull(model, digest, client)
        finally:
            self._pulls -= 1

    async def held(self, digest: str) -> tuple[Manifest, Path] | None:
        """As `find`, in a thread; what is being removed is not found."""
        async with self._removing:
            return await asyncio.to_thread(self.find, digest)

    async def keep_only(self, needed: Callable[[], Collection[str]]) -> None:
        """Removes every version that is not `needed`, and the blobs that none links to; not while one is pulled.

        `needed` is asked at the last moment. What the disk refuses is logged, and left to the next time.
        """
        async with self._removing:
            if self._pulls:
                return
            try:
                await asyncio.to_thread(self._remove_all_but, {_hex(digest) for digest in needed()})
            except OSError as error:
                log.warning("old versions could not be removed: %s", error)

    def _remove_all_but(self, names: Collection[str]) -> None:
        for folder in self._versions.iterdir():
            if folder.name not in names and not folder.name.startswith("."):
                shutil.rmtree(folder)
                log.info("removed an old version digest=sha256:%s", folder.name)
        for blob in self._blobs.iterdir():
            # A version's files are further links to its blobs; the configuration, which none has, is small to pull.
            if blob.stat().st_nlink == 1:
                blob.unlink()

    async def _pull(self, model: str, digest: str, client: httpx.AsyncClient) -> tuple[Manifest, Path]:
        data = await _get_manifest(client, model, digest)
        manifest = Manifest.from_bytes(data)
        for blob in manifest.blobs:
            await self._pull_blob(client, model, blob)
        folder = await asyncio.to_thread(self._assemble, manifest, data, digest)
        log.info("pulled model=%s version=%s digest=%s bytes=%d", model, manifest.version, digest, manifest.size_bytes)
        return manifest, folder

    async def _pull_blob(self, client: httpx.AsyncClient, model: str, blob: Descriptor) -> None:
        target = self._blobs / _hex(blob.digest)
        if target.exists() and await asyncio.to_thread(digest_file, target) == blob.digest:
            return
        fd, name = tempfile.mkstemp(dir=self._blobs, prefix=".incoming-")
        draft = Path(name)
        try:
            with os.fdopen(fd, "wb") as file:
                await _download(client, model, blob, file.write)
                await asyncio.to_thread(_settle, file, draft, target)
        except BaseException:
            # Broken off after the rename, there is no draft any more.
            draft.unlink(missing_ok=True)  # noqa: ASYNC240
            raise

    def _assemble(self, manifest: Manifest, data: bytes, digest: str) -> Path:
        folder = self._versions / _hex(digest)
        draft = Path(tempfile.mkdtemp(dir=self._versions, prefix=".incoming-"))
        for file in manifest.files:
            os.link(self._blobs / _hex(file.digest), draft / file.title)
        write_private(draft / _MANIFEST, data, mode=0o644)
        draft.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
        fsync_folder(self._versions)
        return folder

    def _discard(self, folder: Path) -> None:
        """Removes a damaged version with the blobs that it links to, which are the same damaged bytes."""
        for file in folder.iterdir():
            for blob in self._blobs.iterdir():
                if blob.samefile(file):
                    blob.unlink()
        shutil.rmtree(folder)


async def _get_manifest(client: httpx.AsyncClient, model: str, digest: str) -> bytes:
    try:
        response = await client.get(f"/v2/{model}/manifests/{digest}", headers={"Accept": MANIFEST_TYPE})
    except httpx.HTTPError as error:
        raise Unreachable(f"the registry did not answer: {error!r}") from None
    _check_status(response, f"manifest {digest}")
    data = response.content
    if len(data) > MAX_MANIFEST_BYTES or digest_bytes(data) != digest:
        raise DigestMismatch(f"the registry's manifest of {model} is {digest_bytes(data)}, wanted {digest}")
    return data


async def _download(client: httpx.AsyncClient, model: str, blob: Descriptor, write: Callable[[bytes], object]) -> None:
    """Streams one blob and checks it. Raises DigestMismatch before anyone could use it."""
    sha, size = hashlib.sha256(), 0
    try:
        async with client.stream("GET", f"/v2/{model}/blobs/{blob.digest}") as response:
            _check_status(response, f"blob {blob.digest}")
            async for piece in response.aiter_bytes():
                size += len(piece)
                if size > blob.size_bytes:
                    break
                sha.update(piece)
                write(piece)
    except httpx.HTTPError as error:
        raise Unreachable(f"the registry broke off {blob.title or blob.digest}: {error!r}") from None
    got = "sha256:" + sha.hexdigest()
    if got != blob.digest or size != blob.size_bytes:
        raise DigestMismatch(
            f"{blob.title or 'config'} is {blob.digest} ({blob.size_bytes} bytes), the registry sent {got} ({size})"
        )


def _settle(file: IO[bytes], draft: Path, target: Path) -> None:
    """Puts a verified file where it belongs, on disk."""
    file.flush()
    os.fsync(file.fileno())
    draft.chmod(0o644)
    draft.replace(target)
    fsync_folder(target.parent)


def _check_status(response: httpx.Response, what: str) -> None:
    if response.status_code == httpx.codes.NOT_FOUND:
        raise NotFound(f"the registry has no {what}")
    if response.status_code != httpx.codes.OK:
        raise Unreachable(f"the registry answered {response.status_code} for {what}")


def _hex(digest: str) -> str:
    return check_digest(digest).removeprefix("sha256:")
