"""The OCI image layout on disk: blobs by digest, an index of manifests.

A blob that is there was whole and synced when it came; what the disk did to it since, `has` finds out.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from nearmesh.errors import DigestMismatch, NotFound, TooLarge
from nearmesh.ids import check_digest
from nearmesh.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor, digest_file
from nearmesh.tls import fsync_folder, write_private

REF_NAME = "org.opencontainers.image.ref.name"


class BlobWriter:
    """One blob on its way in; it appears in the layout when its bytes have proven right."""

    def __init__(self, folder: Path, expected: Descriptor) -> None:
        self._expected = expected
        self._target = folder / expected.digest.removeprefix("sha256:")
        fd, name = tempfile.mkstemp(dir=folder, prefix=".incoming-")
        self._draft, self._file = Path(name), os.fdopen(fd, "wb")
        self._sha = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        """Raises TooLarge as soon as there is more than was announced."""
        self._size += len(data)
        if self._size > self._expected.size_bytes:
            raise TooLarge(f"blob {self._expected.digest} exceeds the {self._expected.size_bytes} bytes announced")
        self._sha.update(data)
        self._file.write(data)

    def commit(self) -> None:
        """Puts the blob in place, on disk. Raises DigestMismatch when the bytes are not the announced ones."""
        got = "sha256:" + self._sha.hexdigest()
        if got != self._expected.digest or self._size != self._expected.size_bytes:
            raise DigestMismatch(
                f"blob {self._expected.digest} ({self._expected.size_bytes} bytes) came as {got} ({self._size} bytes)"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._draft.chmod(0o644)
        self._draft.replace(self._target)
        fsync_folder(self._target.parent)

    def abandon(self) -> None:
        """Leaves nothing behind; harmless after `commit`."""
        self._file.close()
        self._draft.unlink(missing_ok=True)


class Layout:
    """An OCI image layout in one folder, which any OCI tool can read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = folder / "blobs" / "sha256"
        # Held while the index is read, changed and written.
        self._index = threading.Lock()
        self._blobs.mkdir(parents=True, exist_ok=True)
        for stale in self._blobs.glob(".incoming-*"):
            stale.unlink()
        if not (folder / "oci-layout").exists():
            self._write("index.json", {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []})
            self._write("oci-layout", {"imageLayoutVersion": "1.0.0"})

    def has(self, expected: Descriptor) -> bool:
        """Whether the blob is there and still what it should be; reads all of it, so call it in a thread."""
        path = self._path(expected.digest)
        if not path.exists() or path.stat().st_size != expected.size_bytes:
            return False
        return digest_file(path) == expected.digest

    def holds(self, digest: str) -> bool:
        """Whether the blob came, whatever the disk did to it since."""
        return self._path(digest).exists()

    def path(self, digest: str) -> Path:
        """The blob's file. Raises NotFound."""
        path = self._path(digest)
        if not path.exists():
            raise NotFound(f"no blob {digest}")
        return path

    def writer(self, expected: Descriptor) -> BlobWriter:
        return BlobWriter(self._blobs, expected)

    def add(self, expected: Descriptor, data: bytes) -> None:
        """Stores a small blob. Raises DigestMismatch, TooLarge."""
        writer = self.writer(expected)
        try:
            writer.write(data)
            writer.commit()
        finally:
            writer.abandon()

    def add_manifest(self, manifest: bytes, digest: str, ref: str) -> None:
        """Stores the manifest and names it in the index, instead of what had that name. May be called in any thread."""
        self.add(Descriptor(MANIFEST_TYPE, digest, len(manifest)), manifest)
        entry = {"mediaType": MANIFEST_TYPE, "digest": digest, "size": len(manifest), "annotations": {REF_NAME: ref}}
        with self._index:
            index = json.loads((self._folder / "index.json").read_bytes())
            if entry not in index["manifests"]:
                others = [other for other in index["manifests"] if other["annotations"] != entry["annotations"]]
                self._write("index.json", index | {"manifests": [*others, entry]})

    def named(self, ref: str) -> bytes:
        """The manifest that the index has under that name. Raises NotFound."""
        with self._index:
            index = json.loads((self._folder / "index.json").read_bytes())
        for entry in index["manifests"]:
            if entry["annotations"].get(REF_NAME) == ref:
                return self.path(entry["digest"]).read_bytes()
        raise NotFound(f"{self._folder} has no manifest {ref!r}")

    def _path(self, digest: str) -> Path:
        return self._blobs / check_digest(digest).removeprefix("sha256:")

    def _write(self, name: str, body: dict[str, Any]) -> None:
        write_private(self._folder / name, json.dumps(body, indent=1).encode(), mode=0o644)
