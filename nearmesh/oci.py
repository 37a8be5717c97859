"""Model artifacts as OCI manifests, as the CNCF ModelPack specification has them: which bytes belong to a version.

A layer is a whole file, uncompressed, so that any OCI tool gets plain files out of a registry.
https://github.com/modelpack/model-spec
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from nearmesh.chunks import CHUNKS_TYPE, MAX_INDEX_BYTES
from nearmesh.errors import InvalidInput, PackageError
from nearmesh.ids import RESERVED_FILE, check_digest, check_label, check_version

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
# What belongs to the weights: model.toml, labels, vocabularies.
WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
CODE_TYPE = "application/vnd.cncf.model.code.v1.raw"
DOC_TYPE = "application/vnd.cncf.model.doc.v1.raw"
# Warm-ups, samples to calibrate with and sets to evaluate on.
DATASET_TYPE = "application/vnd.cncf.model.dataset.v1.raw"
FILE_TYPES = frozenset({WEIGHT_TYPE, WEIGHT_CONFIG_TYPE, CODE_TYPE, DOC_TYPE, DATASET_TYPE})
# What Nearmesh made before it followed the specification.
_EARLIER_TYPE = "application/vnd.nearmesh.model.v1"

# A file's name: for tools that know models, and for oras and its like.
FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"
# Of a file that new versions are made with: no node pulls it.
WORKSHOP = "dev.nearmesh.workshop"

# A manifest lists files; one that is larger than this is not a manifest.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
# No file is larger; sums of as many as a manifest can list fit into 64 bits, as messages about them want it.
MAX_FILE_BYTES = 2**46

_READ_BYTES = 1024 * 1024
_TYPE_OF_SUFFIX = {
    **dict.fromkeys((".onnx", ".data", ".bin", ".safetensors", ".plan", ".engine"), WEIGHT_TYPE),
    ".py": CODE_TYPE,
    ".npz": DATASET_TYPE,
    ".md": DOC_TYPE,
}
_DOCUMENTS = ("licence", "license", "notice", "readme", "report.json", "lineage.json")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One blob: its media type, digest and size; `title` is the file's name inside the package."""

    media_type: str
    digest: str
    size_bytes: int
    title: str = ""
    # It is what new versions are made with: no node pulls it.
    workshop: bool = False

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}
        said = {FILEPATH: self.title, TITLE: self.title} if self.title else {}
        said |= {WORKSHOP: "true"} if self.workshop else {}
        return found | ({"annotations": said} if said else {})

    @classmethod
    def from_json(cls, data: Any) -> Descriptor:
        """Raises PackageError."""
        try:
            annotations = data.get("annotations") or {}
            # Other tools may write one of the two alone.
            names = [annotations[key] for key in (FILEPATH, TITLE) if key in annotations]
            title = names[0] if names else ""
            workshop = annotations.get(WORKSHOP) == "true"
            found = cls(data["mediaType"], check_digest(data["digest"]), data["size"], title, workshop)
        except (KeyError, TypeError, AttributeError, InvalidInput) as error:
            raise PackageError(f"not an OCI descriptor: {data!r} ({error})") from None
        typed = type(found.media_type) is str and type(found.size_bytes) is int and type(title) is str
        sized = typed and 0 <= found.size_bytes <= MAX_FILE_BYTES
        if not sized or names != [title] * len(names) or not is_file_name(title or "untitled"):
            raise PackageError(f"not an OCI descriptor of a package's file: {data!r}")
        return found


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model version: its name, its config and its files."""

    model: str
    version: str
    config: Descriptor
    # Those that nodes have.
    files: tuple[Descriptor, ...]
    # The index of the large files' chunks, if there are any: see `nearmesh.chunks`.
    chunks: Descriptor | None = None
    # Those that new versions are made with, which no node pulls.
    workshop: tuple[Descriptor, ...] = ()

    def to_bytes(self) -> bytes:
        """Canonical JSON, so that equal files give an equal digest."""
        body = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
            "annotations": {TITLE: self.model, VERSION: self.version},
        }
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Raises PackageError, for anything that is not the manifest of a model."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise PackageError(f"a manifest of {len(data)} bytes is above the limit of {MAX_MANIFEST_BYTES}")
        try:
            body = json.loads(data)
            _check_types(body)
            names = body["annotations"]
            layers = [Descriptor.from_json(layer) for layer in body["layers"]]
            files = [layer for layer in layers if layer.media_type != CHUNKS_TYPE]
            found = cls(
                check_label("model", names[TITLE]),
                check_version(names[VERSION]),
                Descriptor.from_json(body["config"]),
                tuple(file for file in files if not file.workshop),
                next((layer for layer in layers if layer.media_type == CHUNKS_TYPE), None),
                tuple(file for file in files if file.workshop),
            )
        except (KeyError, TypeError, ValueError, RecursionError, InvalidInput) as error:
            raise PackageError(f"not the OCI manifest of a model: {error!r}") from None
        _check_layers(found, len(layers))
        return found

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        """As they stand in the manifest: all files, then their chunk index."""
        return (*self.all_files, self.chunks) if self.chunks else self.all_files

    @property
    def all_files(self) -> tuple[Descriptor, ...]:
        """Those that nodes have, then those that they do not."""
        return (*self.files, *self.workshop)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Every blob the version consists of, each once."""
        return _once(self.config, *self.layers)

    @property
    def node_blobs(self) -> tuple[Descriptor, ...]:
        """What a node pulls, each once."""
        return _once(self.config, *self.files, *((self.chunks,) if self.chunks else ()))

    @property
    def size_bytes(self) -> int:
        """Of every blob."""
        return sum(blob.size_bytes for blob in self.blobs)


def _once(*blobs: Descriptor) -> tuple[Descriptor, ...]:
    return tuple({blob.digest: blob for blob in blobs}.values())


def _check_types(body: Any) -> None:
    """Raises PackageError; KeyError, TypeError for what is no manifest at all."""
    if body["artifactType"] == _EARLIER_TYPE:
        raise PackageError(
            "this version was published by an earlier Nearmesh, in a form that is read no more: "
            "raise `version` in its model.toml and publish it again"
        )
    if body["artifactType"] != ARTIFACT_TYPE:
        raise PackageError(f"artifact type {body['artifactType']!r} is not {ARTIFACT_TYPE}")
    if body["schemaVersion"] != 2 or body.get("mediaType", MANIFEST_TYPE) != MANIFEST_TYPE:
        raise PackageError(f"schema {body['schemaVersion']!r} of {body.get('mediaType')!r} is not 2 of {MANIFEST_TYPE}")


def _check_layers(manifest: Manifest, count: int) -> None:
    """Raises PackageError."""
    if manifest.config.media_type != CONFIG_TYPE:
        raise PackageError(f"not the manifest of a model: its config is {manifest.config.media_type!r}")
    if count > len(manifest.layers):
        raise PackageError("not the manifest of a model: it has more than one chunk index")
    for file in manifest.all_files:
        if file.media_type not in FILE_TYPES or not file.title:
            raise PackageError(
                f"layer {file.title or file.digest} of {file.media_type!r}: each has to be a whole file "
                "(application/vnd.cncf.model.*.raw) with its name in org.cncf.model.filepath"
            )
        if file.title == RESERVED_FILE or file.title.startswith("."):
            raise PackageError(
                f"layer {file.title!r}: nodes keep {RESERVED_FILE} and names that begin with a dot for themselves; "
                "give the file another name"
            )
    if manifest.chunks and manifest.chunks.size_bytes > MAX_INDEX_BYTES:
        raise PackageError(f"a chunk index of {manifest.chunks.size_bytes} bytes is above {MAX_INDEX_BYTES}")
    titles = [layer.title for layer in manifest.layers]
    if len(set(titles)) < len(titles):
        raise PackageError(f"not the manifest of a model: two of its files have one title: {titles}")


def file_type(name: str) -> str:
    """The media type of a package's file, by its name."""
    if name.lower().startswith(_DOCUMENTS):
        return DOC_TYPE
    return _TYPE_OF_SUFFIX.get(PurePath(name).suffix.lower(), WEIGHT_CONFIG_TYPE)


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
