"""What is sent when a version is published: what the control plane lacks, the chunk index first, and no byte twice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nearmesh.chunks import CHUNKS_TYPE, Chunk, ChunkIndex
from nearmesh.client.upload import Lacking, Step, chunk_index, requests, sent_bytes, steps
from nearmesh.errors import PackageError
from nearmesh.oci import CONFIG_TYPE, WEIGHT_TYPE, Descriptor, Manifest, digest_bytes

PIECES = [b"a" * 10, b"b" * 20, b"c" * 30, b"d" * 5]
LARGE, SMALL, CONFIG = b"".join(PIECES), b"name = 1", b"{}"


def cut() -> tuple[Chunk, ...]:
    found, offset = [], 0
    for piece in PIECES:
        found.append(Chunk(offset, len(piece), digest_bytes(piece)))
        offset += len(piece)
    return tuple(found)


INDEX = ChunkIndex({digest_bytes(LARGE): cut()})
A, B, C, D = (chunk.digest for chunk in cut())


def described(data: bytes, kind: str = WEIGHT_TYPE, title: str = "") -> Descriptor:
    return Descriptor(kind, digest_bytes(data), len(data), title)


LARGE_BLOB, SMALL_BLOB, CONFIG_BLOB = described(LARGE), described(SMALL), described(CONFIG, CONFIG_TYPE)
INDEX_BLOB = described(INDEX.to_bytes(), CHUNKS_TYPE)
MANIFEST = Manifest("m", "1", CONFIG_BLOB, (LARGE_BLOB, SMALL_BLOB), INDEX_BLOB)


@dataclass(frozen=True)
class Made:
    manifest: Manifest
    manifest_bytes: bytes
    blobs: dict[str, Path | bytes]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    contents = {LARGE_BLOB.digest: path, SMALL_BLOB.digest: SMALL, CONFIG_BLOB.digest: CONFIG}
    return Made(MANIFEST, MANIFEST.to_bytes(), {**contents, INDEX_BLOB.digest: INDEX.to_bytes()})


def lacking(*blobs: Descriptor, chunks: tuple[str, ...] = ()) -> Lacking:
    return Lacking(frozenset(blob.digest for blob in blobs), frozenset(chunks))


def whole(blob: Descriptor) -> Step:
    return Step(blob.digest, 0, blob.size_bytes)


def test_who_lacks_everything_gets_everything_the_index_first() -> None:
    blobs = (INDEX_BLOB, CONFIG_BLOB, LARGE_BLOB, SMALL_BLOB)
    assert steps(MANIFEST, INDEX, None) == [whole(blob) for blob in blobs]
    assert steps(MANIFEST, INDEX, lacking(*blobs, chunks=(A, B, C, D))) == [whole(blob) for blob in blobs]
    assert steps(replace(MANIFEST, chunks=None), ChunkIndex(), None) == [whole(blob) for blob in blobs[1:]]


def test_who_has_everything_gets_nothing() -> None:
    assert steps(MANIFEST, INDEX, lacking()) == []


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ((), [(0, 10, A), (10, 20, B), (30, 30, C), (60, 5, D)]),
        ((B,), [(0, 10, A), (10, 20, ""), (30, 30, C), (60, 5, D)]),
        ((B, C), [(0, 10, A), (10, 50, ""), (60, 5, D)]),
        ((A, D), [(0, 10, ""), (10, 20, B), (30, 30, C), (60, 5, "")]),
    ],
)
def test_of_a_large_file_the_new_chunks_are_sent(chunks: tuple[str, ...], expected: list[tuple[int, int, str]]) -> None:
    found = steps(MANIFEST, INDEX, lacking(LARGE_BLOB, chunks=chunks))
    assert [(step.offset, step.size_bytes, step.chunk) for step in found] == expected
    assert {step.blob for step in found} == {LARGE_BLOB.digest}
    assert sent_bytes(found) == sum(chunk.size_bytes for chunk in cut() if chunk.digest in chunks)


def test_an_index_that_does_not_fit_is_refused() -> None:
    short = ChunkIndex({LARGE_BLOB.digest: cut()[:-1]})
    with pytest.raises(PackageError, match="make 60 bytes, the file has 65"):
        steps(MANIFEST, short, lacking(LARGE_BLOB))


def test_what_goes_over_the_connection(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearmesh.client.upload.PART_BYTES", 16)
    told: list[tuple[int, int]] = []
    todo = steps(MANIFEST, chunk_index(made), lacking(SMALL_BLOB, LARGE_BLOB, chunks=(B, C)))
    first, *parts = requests(made, todo, lambda done, total: told.append((done, total)))
    assert first.manifest_json == made.manifest_bytes
    large = [part.blob for part in parts if part.blob.digest == LARGE_BLOB.digest]
    assert (large[0].chunk, large[-1].chunk) == (A, D)
    assert b"".join(part.data for part in large) == LARGE[10:60]
    assert max(len(part.data) for part in large) == 16
    assert b"".join(part.blob.data for part in parts if part.blob.digest == SMALL_BLOB.digest) == SMALL
    assert told[0] == (0, 58) and told[-1] == (58, 58) and told == sorted(told)


def test_an_empty_blob_is_named(made: Made) -> None:
    empty = described(b"")
    made.blobs[empty.digest] = b""
    _, part = requests(made, [whole(empty)], lambda done, total: None)
    assert (part.blob.digest, part.blob.data) == (empty.digest, b"")


def test_a_file_that_grew_or_shrank_ends_the_upload_all_the_same(made: Made) -> None:
    path = made.blobs[LARGE_BLOB.digest]
    assert isinstance(path, Path)
    for now in (LARGE + b"more", LARGE[:7]):
        path.write_bytes(now)
        _, *parts = requests(made, [whole(LARGE_BLOB)], lambda done, total: None)
        assert b"".join(part.blob.data for part in parts) == now[: len(LARGE)]


def test_an_artifact_without_an_index(made: Made) -> None:
    assert chunk_index(replace(made, manifest=replace(MANIFEST, chunks=None))) == ChunkIndex()
