"""Of a version in another registry only the chunks are fetched that are not there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from nearmesh.chunks import CHUNKS_TYPE, Chunk, ChunkIndex
from nearmesh.errors import DigestMismatch
from nearmesh.oci import CONFIG_TYPE, WEIGHT_TYPE, Descriptor, Manifest, digest_bytes
from nearmesh.registries import fetching
from tests.fake_registry import CONFIG
from tests.http_registry import Registry, opened, unseen

PARTS = [bytes([number]) * (1000 + number) for number in range(6)]
LARGE = b"".join(PARTS)
CUT = tuple(
    Chunk(sum(len(part) for part in PARTS[:number]), len(part), digest_bytes(part)) for number, part in enumerate(PARTS)
)
CHUNKS = ChunkIndex({digest_bytes(LARGE): CUT}).to_bytes()


def chunked(**more: bool) -> Registry:
    """A registry with a version of one large file."""
    blobs = {digest_bytes(data): data for data in (CONFIG, LARGE, CHUNKS, b"name")}
    files = tuple(Descriptor(WEIGHT_TYPE, digest_bytes(data), len(data), title) for title, data in CONTENTS.items())
    index = Descriptor(CHUNKS_TYPE, digest_bytes(CHUNKS), len(CHUNKS), "chunks.json")
    made = Manifest("m", "2", Descriptor(CONFIG_TYPE, digest_bytes(CONFIG), len(CONFIG)), files, index).to_bytes()
    return Registry(blobs=blobs, manifests={"2": made}, **more)


CONTENTS = {"fp32.onnx": LARGE, "model.toml": b"name"}


def lacks(blobs: set[bytes], parts: set[int]) -> fetching.Lacks:
    def found(digests: Sequence[str], chunks: bool) -> frozenset[str]:
        wanted = {CUT[number].digest for number in parts} if chunks else {digest_bytes(blob) for blob in blobs}
        assert wanted <= set(digests)
        return frozenset(wanted)

    return found


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("parts", [{0}, {2, 3}, {0, 2, 3, 5}, {5}, set(range(6))])
def test_only_the_lacking_chunks_are_fetched(tmp_path: Path, parts: set[int], ranges: bool) -> None:
    registry, told = chunked(ranges=ranges), [(0, 0)]
    with opened(registry) as source:
        pulled = fetching.pull(
            source, "2", tmp_path, lambda done, total: told.append((done, total)), lacks({LARGE}, parts)
        )
    path = pulled.blobs[digest_bytes(LARGE)]
    assert isinstance(path, Path)
    data = path.read_bytes()
    assert len(data) == len(LARGE) and digest_bytes(b"name") not in pulled.blobs
    for number, chunk in enumerate(CUT):
        expected = PARTS[number] if number in parts else bytes(chunk.size_bytes)
        assert data[chunk.offset : chunk.end] == expected
    wanted = sum(len(PARTS[number]) for number in parts)
    assert told[-1] == (wanted, wanted)
    if ranges:
        assert registry.sent_bytes == wanted + len(CHUNKS) + len(registry.manifests["2"])


def test_who_has_everything_fetches_nothing(tmp_path: Path) -> None:
    registry = chunked()
    with opened(registry) as source:
        fetching.pull(source, "2", tmp_path, unseen, lambda digests, chunks: frozenset())
    assert registry.sent_bytes == len(CHUNKS) + len(registry.manifests["2"])


@pytest.mark.parametrize("spoiled", [LARGE[:3000] + b"x" + LARGE[3001:], LARGE[:2500]])
def test_p5_a_chunk_that_is_another_is_refused(tmp_path: Path, spoiled: bytes) -> None:
    registry = chunked()
    registry.blobs[digest_bytes(LARGE)] = spoiled
    with opened(registry) as source, pytest.raises(DigestMismatch, match="the chunk at 2001 is"):
        fetching.pull(source, "2", tmp_path, unseen, lacks({LARGE}, {2, 3}))


def test_a_tampered_index_is_refused(tmp_path: Path) -> None:
    registry = chunked()
    registry.blobs[digest_bytes(CHUNKS)] = CHUNKS.replace(b"1000", b"1001")
    with opened(registry) as source, pytest.raises(DigestMismatch, match=r"chunks\.json is"):
        fetching.pull(source, "2", tmp_path, unseen)
