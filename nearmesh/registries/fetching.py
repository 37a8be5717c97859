"""A version from a registry to disk: no more of it than is needed, and nothing but what its digests name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nearmesh.chunks import MAX_INDEX_BYTES, Chunk, ChunkIndex
from nearmesh.client.upload import Lacking, OnProgress, Step, sent_bytes, steps
from nearmesh.errors import DigestMismatch, PackageError
from nearmesh.oci import Descriptor, Manifest, digest_bytes
from nearmesh.registries.client import RegistryClient

# Those of the digests, of blobs or (second argument) of chunks, that have to be fetched.
Lacks = Callable[[Sequence[str], bool], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Pulled:
    """A version that came from a registry: what `AdminClient.publish` takes."""

    manifest: Manifest
    manifest_bytes: bytes
    # Those that were fetched; what was not needed of a file is a hole in it.
    blobs: Mapping[str, Path | bytes]

    @property
    def digest(self) -> str:
        return digest_bytes(self.manifest_bytes)


def pull(
    source: RegistryClient, reference: str, folder: Path, on_progress: OnProgress, lacks: Lacks | None = None
) -> Pulled:
    """Fetches into a folder what is lacking of a version, all of it without `lacks`.

    Raises NotFound, PackageError, and DigestMismatch for whatever is not what it should be.
    """
    data = source.manifest(reference)
    manifest = Manifest.from_bytes(data)
    blobs: dict[str, Path | bytes] = {}
    if manifest.chunks:
        blobs[manifest.chunks.digest] = _small(source, manifest.chunks)
    index = ChunkIndex.from_bytes(_bytes(blobs[manifest.chunks.digest])) if manifest.chunks else ChunkIndex()
    todo = [step for step in steps(manifest, index, _lacking(manifest, index, lacks)) if step.blob not in blobs]
    described = {blob.digest: blob for blob in manifest.blobs}
    done, total = 0, sent_bytes(todo)
    for step in todo:
        blob = described[step.blob]
        path = folder / step.blob.removeprefix("sha256:")
        with path.open("r+b" if step.blob in blobs else "w+b") as file:
            blobs[step.blob] = path
            file.truncate(blob.size_bytes)
            for offset, piece in () if step.chunk else _proven(source, blob, step, index):
                file.seek(offset)
                file.write(piece)
                done += len(piece)
                on_progress(done, total)
    return Pulled(manifest, data, blobs)


def _lacking(manifest: Manifest, index: ChunkIndex, lacks: Lacks | None) -> Lacking | None:
    if lacks is None:
        return None
    blobs = lacks([blob.digest for blob in manifest.blobs], False)
    chunks = {chunk.digest for file, found in index.files.items() if file in blobs for chunk in found}
    return Lacking(blobs, lacks(sorted(chunks), True) if chunks else frozenset())


def _small(source: RegistryClient, blob: Descriptor) -> bytes:
    if blob.size_bytes > MAX_INDEX_BYTES:
        raise PackageError(f"a chunk index of {blob.size_bytes} bytes is above the limit of {MAX_INDEX_BYTES}")
    return b"".join(source.pieces(blob))


def _bytes(data: Path | bytes) -> bytes:
    assert isinstance(data, bytes)
    return data


def _proven(source: RegistryClient, blob: Descriptor, step: Step, index: ChunkIndex) -> Iterator[tuple[int, bytes]]:
    """What the step asks for, with the offsets at which it lies in the file; proven at the latest when it ends."""
    if step.size_bytes == blob.size_bytes:
        offset = 0
        for piece in source.pieces(blob):
            yield offset, piece
            offset += len(piece)
        return
    end = step.offset + step.size_bytes
    chunks = [chunk for chunk in index.files[blob.digest] if step.offset <= chunk.offset < end]
    yield from _by_chunk(source.stretch(blob, step.offset, step.size_bytes), chunks, f"{blob.title} in {source}")


def _by_chunk(pieces: Iterator[bytes], chunks: Sequence[Chunk], what: str) -> Iterator[tuple[int, bytes]]:
    """Each chunk with its offset. Raises DigestMismatch."""
    held = bytearray()
    for chunk in chunks:
        while len(held) < chunk.size_bytes and (piece := next(pieces, b"")):
            held += piece
        data = bytes(held[: chunk.size_bytes])
        if digest_bytes(data) != chunk.digest:
            raise DigestMismatch(f"{what}: the chunk at {chunk.offset} is {digest_bytes(data)}, not {chunk.digest}")
        yield chunk.offset, data
        del held[: chunk.size_bytes]
