"""What artifacts say of their versions: what was measured of them, and where those come from that rounds made."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from nearmesh.document import Document
from nearmesh.errors import NotFound, PackageError
from nearmesh.oci import Manifest
from nearmesh.oci_layout import Layout
from nearmesh.report import REPORT_FILE

D = TypeVar("D", bound=Document)


def document_of(kind: type[D], layout: Layout, manifest: Manifest) -> D | None:
    """What the version has of that kind; None where it has none. Reads a file. Raises PackageError, NotFound."""
    file = next((file for file in manifest.files if file.title == kind.FILE), None)
    if file is None:
        return None
    kind.check_size(file.size_bytes)
    return kind.from_bytes(layout.path(file.digest).read_bytes())


def differ_in_report_alone(layout: Layout, digest: str, manifest: Manifest) -> bool:
    """Whether the published version `digest` has all files of `manifest`, and no others, but for what was measured.

    The same package, published from another machine, measures other times. Reads a file.
    """
    try:
        published = Manifest.from_bytes(layout.path(digest).read_bytes())
    except (NotFound, PackageError):
        return False
    return _files(published) == _files(manifest)


def _files(manifest: Manifest) -> dict[str, str]:
    return {file.title: file.digest for file in manifest.all_files if file.title != REPORT_FILE}


class Documents:
    """Those of one kind, as JSON by digest; each is read once, since versions never change."""

    def __init__(self, layout: Layout, kind: type[Document]) -> None:
        self._layout = layout
        self._kind = kind
        self._known: dict[str, str] = {}

    async def text(self, digest: str) -> str:
        """Empty for a version that has none, or whose files are not here."""
        if digest not in self._known:
            found = await asyncio.to_thread(self._read, digest)
            if found is None:
                return ""
            self._known[digest] = found
        return self._known[digest]

    def _read(self, digest: str) -> str | None:
        try:
            manifest = Manifest.from_bytes(self._layout.path(digest).read_bytes())
            found = document_of(self._kind, self._layout, manifest)
        except (NotFound, PackageError, OSError):
            return None
        return found.to_bytes().decode() if found else ""
