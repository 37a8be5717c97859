"""An OCI image layout on this disk as the place that a version is copied to."""

from __future__ import annotations

from pathlib import Path

from nearmesh.oci import MANIFEST_TYPE, Descriptor, digest_bytes
from nearmesh.oci_layout import Layout
from nearmesh.registries.client import Opened


class Folder:
    """A layout, of which one model's versions have the tags `NAME:TAG`, as several may lie in one layout."""

    def __init__(self, folder: Path, model: str) -> None:
        self._layout = Layout(folder)
        self._model = model

    def has(self, digest: str) -> bool:
        """Whether the blob is there."""
        return self._layout.holds(digest)

    def upload(self, blob: Descriptor, opened: Opened) -> None:
        """Puts a blob there, on disk. Raises DigestMismatch, TooLarge."""
        writer = self._layout.writer(blob)
        try:
            for piece in opened():
                writer.write(piece)
            writer.commit()
        finally:
            writer.abandon()

    def manifest(self, reference: str) -> bytes:
        """By tag. Raises NotFound."""
        return self._layout.named(f"{self._model}:{reference}")

    def put_manifest(self, reference: str, data: bytes, media_type: str = MANIFEST_TYPE) -> bool:
        """Under a tag. A layout's index has everything in it, so what it refers to needs no list of its own."""
        self._layout.add_manifest(data, digest_bytes(data), f"{self._model}:{reference}")
        return True
