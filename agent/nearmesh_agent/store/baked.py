"""Weights that came with the machine: folders of blobs in an image, read-only, used where they lie.

A folder has blobs by digest (`<hex>`), or is an OCI image layout (`blobs/sha256/<hex>`, and an `index.json` that names
signatures), as `skopeo copy docker://... oci:FOLDER` writes it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nearmesh.errors import NotFound
from nearmesh.oci import Descriptor, digest_bytes, digest_file

log = logging.getLogger(__name__)

_REFERENCE = "org.opencontainers.image.ref.name"
# Of an index or a manifest.
_MOST_BYTES = 16 * 1024 * 1024


class Baked:
    """What lies in these folders. Blocking."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._folders = folders
        for folder in folders:
            if not folder.is_dir():
                log.warning("[store] baked: %s is not a folder; nothing is taken from it", folder)

    def path(self, digest: str) -> Path | None:
        """The file that bears the digest as its name, unproven."""
        name = digest.removeprefix("sha256:")
        for folder in self._folders:
            for path in (folder / name, folder / "blobs" / "sha256" / name):
                if path.is_file():
                    return path
        return None

    def blob(self, blob: Descriptor) -> Path | None:
        """The blob's file, if it is here and right."""
        path = self.path(blob.digest)
        try:
            if path and path.stat().st_size == blob.size_bytes and digest_file(path) == blob.digest:
                return path
        except OSError as error:
            log.warning("baked %s cannot be read: %s", path, error)
            return None
        if path:
            log.warning("baked %s is not what its name says; it is pulled instead", path)
        return None

    def small(self, digest: str) -> bytes | None:
        """A manifest or another small blob, if it is here and right."""
        path = self.path(digest)
        if path is None or path.stat().st_size > _MOST_BYTES:
            return None
        data = path.read_bytes()
        return data if digest_bytes(data) == digest else None

    def tagged(self, tag: str) -> bytes:
        """The manifest that a layout's index has under the tag. Raises NotFound."""
        for folder in self._folders:
            for entry in _entries(folder):
                names = entry.get("annotations") or {}
                # Tools write the tag alone, or the whole reference.
                if str(names.get(_REFERENCE, "")).rpartition(":")[2] == tag and (found := self.small(entry["digest"])):
                    return found
        raise NotFound(f"no {tag} among the baked weights")


def _entries(folder: Path) -> Iterable[dict[str, Any]]:
    try:
        found = json.loads((folder / "index.json").read_bytes())["manifests"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return [entry for entry in found if isinstance(entry, dict) and isinstance(entry.get("digest"), str)]
