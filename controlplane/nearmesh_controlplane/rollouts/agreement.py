"""How many of a version's answers have to agree with the standing version's: what its package says."""

from __future__ import annotations

import logging

from nearmesh import package as packages
from nearmesh.errors import MeshError
from nearmesh.oci import Manifest
from nearmesh.oci_layout import Layout
from nearmesh.package import MANIFEST_FILE
from nearmesh_controlplane.catalog.catalog import Version

log = logging.getLogger(__name__)


def smallest_agreement(layout: Layout, version: Version) -> float:
    """A part of 1; 0 where the package has no online check, or where this control plane has no copy of it yet."""
    try:
        manifest = Manifest.from_bytes(layout.path(version.digest).read_bytes())
        file = next(file for file in manifest.files if file.title == MANIFEST_FILE)
        package = packages.parse(layout.path(file.digest).read_text("utf-8"), MANIFEST_FILE)
    except (MeshError, OSError, UnicodeDecodeError, StopIteration) as error:
        log.warning("answers of %s@%s will not be compared: %s", version.model, version.version, error)
        return 0.0
    return package.online_check.smallest_agreement if package.online_check else 0.0
