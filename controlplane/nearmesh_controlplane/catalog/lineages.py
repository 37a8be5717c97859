"""Where published versions come from that federated rounds made, as their artifacts say."""

from __future__ import annotations

from nearmesh.errors import PackageError
from nearmesh.lineage import LINEAGE_FILE, MAX_LINEAGE_BYTES, Lineage
from nearmesh.oci import Manifest
from nearmesh.oci_layout import Layout


def lineage_of(layout: Layout, manifest: Manifest) -> Lineage | None:
    """The version's lineage; None where it has none. Reads a file. Raises PackageError, NotFound."""
    file = next((file for file in manifest.files if file.title == LINEAGE_FILE), None)
    if file is None:
        return None
    if file.size_bytes > MAX_LINEAGE_BYTES:
        raise PackageError(f"{LINEAGE_FILE} of {file.size_bytes} bytes is above the limit of {MAX_LINEAGE_BYTES}")
    return Lineage.from_bytes(layout.path(file.digest).read_bytes())
