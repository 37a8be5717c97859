"""What of a version is sent when it is published, in which order: the blobs that the control plane lacks, and of large
files only the chunks that it lacks."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nearmesh import oci
from nearmesh.chunks import Chunk, ChunkIndex
from nearmesh.v1.catalog_pb2 import BlobPart, PublishRequest

PART_BYTES = 1024 * 1024

# Told how many bytes of how many have been handed to the connection; called from another thread.
OnProgress = Callable[[int, int], None]


class Publishable(Protocol):
    """A model version with all its bytes; `nearmesh.packaging.build` makes them."""

    @property
    def manifest(self) -> oci.Manifest: ...

    @property
    def manifest_bytes(self) -> bytes: ...

    @property
    def blobs(self) -> Mapping[str, Path | bytes]: ...


@dataclass(frozen=True, slots=True)
class Lacking:
    """Digests of what the control plane has not."""

    blobs: frozenset[str]
    chunks: frozenset[str]


@dataclass(frozen=True, slots=True)
class Step:
    """The next bytes of a blob: sent, or where `chunk` is set those of a chunk that the control plane has."""

    blob: str
    offset: int
    size_bytes: int
    chunk: str = ""


def chunk_index(artifact: Publishable) -> ChunkIndex:
    """The artifact's chunk index; empty where it has none. Raises PackageError."""
    blob = artifact.manifest.chunks
    if blob is None:
        return ChunkIndex()
    data = artifact.blobs[blob.digest]
    return ChunkIndex.from_bytes(data if isinstance(data, bytes) else data.read_bytes())


def steps(manifest: oci.Manifest, index: ChunkIndex, lacking: Lacking | None) -> list[Step]:
    """All that there is to do, None for a control plane that lacks everything. Raises PackageError.

    The chunk index comes first: the control plane finds by it the chunks that it has.
    """
    first = manifest.chunks.digest if manifest.chunks else ""
    found: list[Step] = []
    for blob in sorted(manifest.blobs, key=lambda blob: blob.digest != first):
        if lacking is None:
            found.append(Step(blob.digest, 0, blob.size_bytes))
        elif blob.digest in lacking.blobs:
            chunks = index.check(blob.digest, blob.size_bytes)
            found += _merged(blob.digest, chunks, lacking) if chunks else [Step(blob.digest, 0, blob.size_bytes)]
    return found


def sent_bytes(todo: Iterable[Step]) -> int:
    """How many bytes go over the connection."""
    return sum(step.size_bytes for step in todo if not step.chunk)


def requests(artifact: Publishable, todo: Iterable[Step], on_progress: OnProgress) -> Iterator[PublishRequest]:
    """The manifest, then each step, what is sent in parts."""
    yield PublishRequest(manifest_json=artifact.manifest_bytes)
    todo = list(todo)
    sent, total = 0, sent_bytes(todo)
    on_progress(sent, total)
    for step in todo:
        if step.chunk:
            yield PublishRequest(blob=BlobPart(digest=step.blob, chunk=step.chunk))
            continue
        for data in _pieces(artifact.blobs[step.blob], step):
            yield PublishRequest(blob=BlobPart(digest=step.blob, data=data))
            sent += len(data)
            on_progress(sent, total)


def _merged(blob: str, chunks: Iterable[Chunk], lacking: Lacking) -> list[Step]:
    """A step for each chunk that is there, and one for each run of those that are not."""
    found: list[Step] = []
    for chunk in chunks:
        if chunk.digest not in lacking.chunks:
            found.append(Step(blob, chunk.offset, chunk.size_bytes, chunk.digest))
        elif found and not found[-1].chunk:
            found[-1] = Step(blob, found[-1].offset, found[-1].size_bytes + chunk.size_bytes)
        else:
            found.append(Step(blob, chunk.offset, chunk.size_bytes))
    return found


def _pieces(blob: Path | bytes, step: Step) -> Iterator[bytes]:
    """At least one piece, since an empty blob has to be named as well.

    No more than was announced is read of a file that grew; who receives it finds out what is wrong with it.
    """
    left = step.size_bytes
    with io.BytesIO(blob) if isinstance(blob, bytes) else blob.open("rb") as file:
        file.seek(step.offset)
        while True:
            data = file.read(min(PART_BYTES, left))
            yield data
            left -= len(data)
            if not data or not left:
                return
