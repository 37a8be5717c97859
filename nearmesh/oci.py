"""Model artifacts as OCI image manifests: which bytes belong to a version, each known by its digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearmesh.errors import InvalidInput, PackageError
from nearmesh.ids import check_digest, check_label, check_version

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.nearmesh.model.v1"
CONFIG_TYPE = "application/vnd.nearmesh.model.config.v1+json"
FILE_TYPE = "application/vnd.nearmesh.model.file.v1"
TITLE = "org.opencontainers.image.title"

# A manifest lists files; one that is larger than this is not a manifest.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One blob: its media type, digest and size; `title` is the file's name inside the package."""

    media_type: str
    digest: str
    size_bytes: int
    title: str = ""

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}
        return found | ({"annotations": {TITLE: self.title}} if self.title else {})

    @classmethod
    def from_json(cls, data: Any) -> Descriptor:
        """Raises PackageError."""
        try:
            title = (data.get("annotations") or {}).get(TITLE, "")
            found = cls(data["mediaType"], check_digest(data["digest"]), data["size"], title)
        except (KeyError, TypeError, AttributeError, InvalidInput) as error:
            raise PackageError(f"not an OCI descriptor: {data!r} ({error})") from None
        typed = type(found.media_type) is str and type(found.size_bytes) is int and type(title) is str
        if not typed or found.size_bytes < 0 or not is_file_name(title or "untitled"):
            raise PackageError(f"not an OCI descriptor of a package's file: {data!r}")
        return found


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model version: its name, its config and its files."""

    model: str
    version: str
    config: Descriptor
    files: tuple[Descriptor, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON, so that equal files give an equal digest."""
        body = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": self.config.to_json(),
            "layers": [file.to_json() for file in self.files],
            "annotations": {TITLE: self.model, "org.opencontainers.image.version": self.version},
        }
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Raises PackageError, for anything that is not the manifest of a model."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise PackageError(f"a manifest of {len(data)} bytes is above the limit of {MAX_MANIFEST_BYTES}")
        try:
            body = json.loads(data)
            if body["artifactType"] != ARTIFACT_TYPE:
                raise PackageError(f"artifact type {body['artifactType']!r} is not {ARTIFACT_TYPE}")
            names = body["annotations"]
            found = cls(
                check_label("model", names[TITLE]),
                check_version(names["org.opencontainers.image.version"]),
                Descriptor.from_json(body["config"]),
                tuple(Descriptor.from_json(layer) for layer in body["layers"]),
            )
        except (KeyError, TypeError, ValueError, RecursionError, InvalidInput) as error:
            raise PackageError(f"not the OCI manifest of a model: {error!r}") from None
        titles = [file.title for file in found.files if file.title]
        if len(set(titles)) < len(titles):
            raise PackageError(f"not the manifest of a model: two of its files have one title: {titles}")
        return found

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Every blob the version consists of, each once."""
        return tuple({blob.digest: blob for blob in (self.config, *self.files)}.values())

    @property
    def size_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.blobs)


def is_file_name(title: str) -> bool:
    """Whether the title can name a file in one folder, on every system."""
    return title not in (".", "..") and title.isprintable() and not set(title) & set("/\\:")


def digest_bytes(data: bytes) -> str:
    """'sha256:...' of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """'sha256:...' of a file, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            sha.update(piece)
    return "sha256:" + sha.hexdigest()
