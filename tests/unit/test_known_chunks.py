"""Chunks that older versions have: found by their indexes, proven when they are read, never trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
from nearmesh_controlplane.catalog import known_chunks

from nearmesh.chunks import CHUNKS_TYPE, Chunk, ChunkIndex
from nearmesh.errors import Incomplete
from nearmesh.oci import CONFIG_TYPE, WEIGHT_TYPE, Descriptor, Manifest, digest_bytes
from nearmesh.oci_layout import Layout

ONE, TWO, THREE = b"a" * 50, b"b" * 60, b"c" * 70


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def kept(layout: Layout, data: bytes, kind: str, title: str = "") -> Descriptor:
    blob = Descriptor(kind, digest_bytes(data), len(data), title)
    layout.add(blob, data)
    return blob


def chunked(*pieces: bytes) -> tuple[Chunk, ...]:
    starts = [sum(len(piece) for piece in pieces[:n]) for n in range(len(pieces))]
    return tuple(Chunk(start, len(p), digest_bytes(p)) for start, p in zip(starts, pieces, strict=True))


def publish(layout: Layout, version: str, *pieces: bytes) -> str:
    """A version of one file; the digest of its manifest."""
    data = b"".join(pieces)
    weights = kept(layout, data, WEIGHT_TYPE, "fp32.onnx")
    index = kept(layout, ChunkIndex({weights.digest: chunked(*pieces)}).to_bytes(), CHUNKS_TYPE, "chunks.json")
    made = Manifest("m", version, kept(layout, b"{}", CONFIG_TYPE), (weights,), index).to_bytes()
    layout.add_manifest(made, digest_bytes(made), f"m:{version}")
    return digest_bytes(made)


def test_chunks_are_found_in_any_version_and_read(layout: Layout) -> None:
    versions = [publish(layout, "1", ONE, TWO), publish(layout, "2", THREE, ONE)]
    wanted = {digest_bytes(data) for data in (ONE, TWO, THREE, b"new")}
    found = known_chunks.find(layout, versions, wanted)
    assert found.keys() == wanted - {digest_bytes(b"new")}
    for data in (ONE, TWO, THREE):
        assert found[digest_bytes(data)].read(layout) == data
    assert found[digest_bytes(ONE)].blob == digest_bytes(ONE + TWO), "the first that has it"


def test_a_chunk_that_is_damaged_or_gone_is_to_be_sent(layout: Layout) -> None:
    version = publish(layout, "1", ONE, TWO)
    (stretch,) = known_chunks.find(layout, [version], {digest_bytes(TWO)}).values()
    path = layout.path(digest_bytes(ONE + TWO))
    path.write_bytes(ONE + TWO[:-1] + b"x")
    with pytest.raises(Incomplete, match="is damaged here"):
        stretch.read(layout)
    path.write_bytes(ONE)
    with pytest.raises(Incomplete, match="is damaged here"):
        stretch.read(layout)
    path.unlink()
    with pytest.raises(Incomplete, match="cannot be read here"):
        stretch.read(layout)
    assert known_chunks.find(layout, [version], {digest_bytes(TWO)}) == {}


def test_versions_that_cannot_be_read_offer_nothing(layout: Layout) -> None:
    damaged, good = publish(layout, "1", ONE), publish(layout, "2", TWO)
    index = Manifest.from_bytes(layout.path(damaged).read_bytes()).chunks
    assert index
    layout.path(index.digest).write_bytes(b"no index")
    earlier = kept(layout, b'{"artifactType":"application/vnd.nearmesh.model.v1"}', WEIGHT_TYPE).digest
    wanted = {digest_bytes(ONE), digest_bytes(TWO)}
    assert known_chunks.find(layout, [digest_bytes(b"gone"), earlier, damaged, good], wanted).keys() == {
        digest_bytes(TWO)
    }


def test_a_version_without_an_index(layout: Layout) -> None:
    manifest = Manifest("m", "1", Descriptor(CONFIG_TYPE, digest_bytes(b"{}"), 2), ())
    assert known_chunks.index_of(layout, manifest) == ChunkIndex()
