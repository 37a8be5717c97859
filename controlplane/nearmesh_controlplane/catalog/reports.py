"""What was measured of published versions, as their artifacts say; and how such documents are read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from nearmesh.errors import NotFound, PackageError
from nearmesh.oci import Manifest
from nearmesh.oci_layout import Layout
from nearmesh.report import MAX_REPORT_BYTES, REPORT_FILE, Report


class Document(Protocol):
    """Something that a version's artifact has as JSON."""

    def to_bytes(self) -> bytes: ...


def report_of(layout: Layout, manifest: Manifest) -> Report | None:
    """The version's report; None where it has none. Reads a file. Raises PackageError, NotFound."""
    file = next((file for file in manifest.files if file.title == REPORT_FILE), None)
    if file is None:
        return None
    if file.size_bytes > MAX_REPORT_BYTES:
        raise PackageError(f"{REPORT_FILE} of {file.size_bytes} bytes is above the limit of {MAX_REPORT_BYTES}")
    return Report.from_bytes(layout.path(file.digest).read_bytes())


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
    """What artifacts say of their versions, as JSON by digest; each is read once, since versions never change."""

    def __init__(self, layout: Layout, read: Callable[[Layout, Manifest], Document | None]) -> None:
        """`read` finds the document of a version, such as `report_of`; raises PackageError, NotFound."""
        self._layout = layout
        self._of = read
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
            found = self._of(self._layout, manifest)
        except (NotFound, PackageError, OSError):
            return None
        return found.to_bytes().decode() if found else ""
