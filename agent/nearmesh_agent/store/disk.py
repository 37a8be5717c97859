"""How versions lie on the disk: blobs by digest, each version a folder of links to them, drafts of what is coming.

    blobs/<hex>              a file, whole and right when it was put there
    versions/<hex>/<title>   a further link to it, or a symbolic one to weights that came with the machine
    versions/<hex>/manifest.json, .config.json, .chunks.json, .signature.json
    drafts/<hex of version>/<hex of blob>, and beside each its journal

The folder of a version appears in one step. Blocking.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from nearmesh.errors import DigestMismatch, MeshError
from nearmesh.ids import check_digest
from nearmesh.oci import Descriptor, Manifest, digest_bytes, digest_file
from nearmesh.tls import fsync_folder, write_private
from nearmesh_agent.store.budget import Room, Stored

log = logging.getLogger(__name__)

# What is in a version's folder beside its files. Other nodes ask for the configuration and the chunk index too.
MANIFEST, CONFIG, CHUNKS, SIGNATURE = "manifest.json", ".config.json", ".chunks.json", ".signature.json"

# What a process may run out of.
_NOT_THE_DISK = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Disk:
    """Below one folder."""

    def __init__(self, folder: Path) -> None:
        self.blobs, self.versions, self.drafts = folder / "blobs", folder / "versions", folder / "drafts"
        for each in (self.blobs, self.versions, self.drafts):
            each.mkdir(parents=True, exist_ok=True)
            for stale in each.glob(".incoming-*"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()

    # What is here.

    def find(self, digest: str) -> tuple[Manifest, Path] | None:
        """The version's manifest and folder if all of it is here and right; what is damaged is put aside.

        Raises OSError when the process lacks what it takes to look.
        """
        folder = self.folder(digest)
        try:
            data = (folder / MANIFEST).read_bytes()
            if digest_bytes(data) != digest:
                raise DigestMismatch(f"the stored manifest of {digest} is damaged")
            manifest = Manifest.from_bytes(data)
            for file in manifest.files:
                if digest_file(folder / file.title) != file.digest:
                    raise DigestMismatch(f"the stored {file.title} of {digest} is damaged")
        except FileNotFoundError:
            return None
        except (MeshError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _NOT_THE_DISK:
                # A lack of this moment says nothing of what lies here.
                raise
            log.warning("discarding a damaged version: %s", error)
            self.discard(digest)
            return None
        return manifest, folder

    def folder(self, digest: str) -> Path:
        """Of a version, here or not."""
        return self.versions / hex_of(digest)

    def blob(self, digest: str) -> Path:
        """Where a blob lies, or would."""
        return self.blobs / hex_of(digest)

    def drafts_of(self, digest: str) -> Path:
        return self.drafts / hex_of(digest)

    def manifests(self) -> Iterator[tuple[str, Manifest, Path]]:
        """Of each version here its digest, manifest and folder; nothing is proven."""
        for folder in self._version_folders():
            try:
                yield f"sha256:{folder.name}", Manifest.from_bytes((folder / MANIFEST).read_bytes()), folder
            except (MeshError, OSError):
                continue

    # What comes.

    def assemble(
        self, digest: str, data: bytes, places: Mapping[str, Path], more: Mapping[str, Path | bytes]
    ) -> tuple[Manifest, Path]:
        """Makes the version's folder; `places` are its files by digest, `more` what lies beside them by name."""
        manifest, folder = Manifest.from_bytes(data), self.folder(digest)
        draft = Path(tempfile.mkdtemp(dir=self.versions, prefix=".incoming-"))
        try:
            for file in manifest.files:
                self._link(places[file.digest], draft / file.title)
            for name, content in more.items():
                if isinstance(content, Path):
                    self._link(content, draft / name)
                else:
                    write_private(draft / name, content, mode=0o644)
            write_private(draft / MANIFEST, data, mode=0o644)
            draft.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            draft.replace(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        fsync_folder(self.versions)
        shutil.rmtree(self.drafts_of(digest), ignore_errors=True)
        return manifest, folder

    def _link(self, place: Path, name: Path) -> None:
        if place.parent == self.blobs:
            os.link(place, name)
        else:
            name.symlink_to(place.absolute())

    # What goes.

    def discard(self, digest: str) -> None:
        """Removes a damaged version with the blobs that it links to, which are the same damaged bytes."""
        folder = self.folder(digest)
        inodes = {(found.st_dev, found.st_ino) for found in map(os.lstat, folder.iterdir())}
        for blob in self.blobs.iterdir():
            found = blob.lstat()
            if (found.st_dev, found.st_ino) in inodes:
                blob.unlink()
        shutil.rmtree(folder)

    def remove(self, digests: Collection[str], keep_blobs: Collection[str] = ()) -> None:
        """Versions, what is here of those that were coming, and the blobs that no version links to then.

        `keep_blobs` are those that a version which is coming waits for. Raises OSError.
        """
        for digest in digests:
            for folder in (self.folder(digest), self.drafts_of(digest)):
                if folder.exists():
                    shutil.rmtree(folder)
                    log.info("removed an old version digest=%s", digest)
        kept = {hex_of(digest) for digest in keep_blobs}
        for blob in self.blobs.iterdir():
            # What a version has is a further link to its blobs.
            if blob.name not in kept and _links(blob) == 1:
                blob.unlink()

    # What it takes.

    def stored(self) -> list[Stored]:
        """Every version, and what is here of those that are coming."""
        found: dict[str, list[float]] = {}
        for folder in [*self._version_folders(), *self.drafts.iterdir()]:
            entry = found.setdefault(f"sha256:{folder.name}", [0.0, 0.0])
            entry[0] += _exclusive_bytes(folder)
            entry[1] = max(entry[1], _wanted_at_s(folder))
        return [Stored(digest, int(size), wanted_at_s) for digest, (size, wanted_at_s) in found.items()]

    def wanted(self, digests: Collection[str]) -> None:
        """Notes that they are wanted at this moment, where they are here."""
        now_s = time.time()
        for digest in digests:
            for folder in (self.folder(digest), self.drafts_of(digest)):
                try:
                    os.utime(folder, (now_s, now_s))
                except OSError:
                    pass

    def room(self, budget_bytes: int, min_free_bytes: int) -> Room:
        used = sum(_bytes(path) for folder in (self.blobs, *_entries(self.drafts)) for path in _entries(folder))
        return Room(used, shutil.disk_usage(self.blobs).free, budget_bytes, min_free_bytes)

    def missing_bytes(self, digest: str, blobs: Collection[Descriptor]) -> int:
        """What these blobs of a version take on the disk beyond what is there of them."""
        drafts = self.drafts_of(digest)
        return sum(blob.size_bytes for blob in blobs if not (drafts / hex_of(blob.digest)).exists())

    def _version_folders(self) -> list[Path]:
        return [folder for folder in self.versions.iterdir() if not folder.name.startswith(".")]


def _exclusive_bytes(folder: Path) -> int:
    """What nothing else links to: a blob and this folder's link to it; of a draft, all of it."""
    return sum(_bytes(path) for path in _entries(folder) if _links(path) <= 2)


# Drafts become blobs, and folders go, while they are counted.


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _bytes(path: Path) -> int:
    found = _status(path)
    return found.st_size if found and stat.S_ISREG(found.st_mode) else 0


def _links(path: Path) -> int:
    found = _status(path)
    return found.st_nlink if found else 0


def _wanted_at_s(folder: Path) -> float:
    found = _status(folder)
    return found.st_mtime if found else 0.0


def hex_of(digest: str) -> str:
    return check_digest(digest).removeprefix("sha256:")
