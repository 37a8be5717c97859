"""Which chunks of a new version lie here already, in the files of versions that were published before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from nearmesh.chunks import Chunk, ChunkIndex
from nearmesh.errors import Incomplete, MeshError
from nearmesh.oci import Manifest, digest_bytes
from nearmesh.oci_layout import Layout


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where a chunk lies: in which blob, and where there."""

    blob: str
    chunk: Chunk

    def read(self, layout: Layout) -> bytes:
        """The chunk's bytes. Raises Incomplete when they are not what they should be."""
        try:
            with layout.path(self.blob).open("rb") as file:
                file.seek(self.chunk.offset)
                data = file.read(self.chunk.size_bytes)
        except (MeshError, OSError) as error:
            raise Incomplete(f"chunk {self.chunk.digest} cannot be read here: {error}; send it") from None
        if digest_bytes(data) != self.chunk.digest:
            raise Incomplete(f"chunk {self.chunk.digest} is damaged here, in {self.blob}; send it")
        return data


def find(layout: Layout, manifests: Iterable[str], wanted: Collection[str]) -> Mapping[str, Stretch]:
    """Those of the wanted chunks that are in files of the versions with these manifests, by the chunk's digest.

    Reads the versions' indexes one by one, so that memory holds no more than one and what was found: call it in a
    thread. What it finds is what the indexes say; `read` looks.
    """
    left, found = set(wanted), dict[str, Stretch]()
    for manifest in manifests:
        if not left:
            break
        for blob, chunks in _index(layout, manifest).files.items():
            for chunk in chunks:
                if chunk.digest in left:
                    found[chunk.digest] = Stretch(blob, chunk)
                    left.discard(chunk.digest)
    return found


def index_of(layout: Layout, manifest: Manifest) -> ChunkIndex:
    """A version's index; empty where it has none. Raises NotFound, PackageError."""
    if manifest.chunks is None:
        return ChunkIndex()
    return ChunkIndex.from_bytes(layout.path(manifest.chunks.digest).read_bytes())


def _index(layout: Layout, digest: str) -> ChunkIndex:
    try:
        found = index_of(layout, Manifest.from_bytes(layout.path(digest).read_bytes()))
        return ChunkIndex({blob: chunks for blob, chunks in found.files.items() if layout.holds(blob)})
    except (MeshError, OSError):
        # A version that is not here, damaged or of an earlier form: it has no chunks to offer.
        return ChunkIndex()
