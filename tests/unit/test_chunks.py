"""Chunks: all of a file, within bounds, the same for the same content wherever it lies; and their index."""

import hashlib
import json

import numpy as np
import pytest

from nearmesh import chunks
from nearmesh.chunks import Chunk, ChunkIndex, split
from nearmesh.errors import PackageError

MEGABYTE = 1_000_000
WEIGHTS = np.random.default_rng(5).integers(0, 256, 12 * MEGABYTE, np.uint8).tobytes()


def cut(tmp_path, data):
    path = tmp_path / "weights"
    path.write_bytes(data)
    return split(path)


def new_bytes(before, after):
    """How much of the second file is in none of the first one's chunks."""
    known = {chunk.digest for chunk in before}
    return sum(chunk.size_bytes for chunk in after if chunk.digest not in known)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a",
        b"seven b",
        WEIGHTS[: chunks.MIN_BYTES],
        WEIGHTS[: 3 * MEGABYTE + 5],
        bytes(3 * MEGABYTE),
        b"\xff" * 3 * MEGABYTE,
        b"0123456789" * 300_000,
    ],
    ids=["nothing", "a byte", "less than a window", "the least", "noise", "zeros", "ones", "a pattern"],
)
def test_chunks_are_all_of_the_file_and_within_bounds(tmp_path, data):
    found = cut(tmp_path, data)
    assert [chunk.offset for chunk in found] == [0, *(chunk.end for chunk in found)][: len(found)]
    assert sum(chunk.size_bytes for chunk in found) == len(data)
    for chunk in found:
        content = data[chunk.offset : chunk.end]
        assert chunk.digest == "sha256:" + hashlib.sha256(content).hexdigest()
        assert 0 < chunk.size_bytes <= chunks.MAX_BYTES
    assert all(chunk.size_bytes >= chunks.MIN_BYTES for chunk in found[:-1])


def test_the_mean_is_near_what_is_said(tmp_path):
    sizes = [chunk.size_bytes for chunk in cut(tmp_path, WEIGHTS)]
    assert 0.6 < np.mean(sizes) / chunks.MEAN_BYTES < 1.5
    assert len(set(sizes)) > len(sizes) / 2


def test_how_the_file_was_read_changes_nothing(tmp_path, monkeypatch):
    whole = cut(tmp_path, WEIGHTS[: 3 * MEGABYTE])
    for block in (1021, 65_536, 10 * MEGABYTE):
        monkeypatch.setattr(chunks, "_BLOCK_BYTES", block)
        assert split(tmp_path / "weights") == whole


@pytest.mark.parametrize(
    "changed",
    [
        WEIGHTS[: 6 * MEGABYTE] + b"new" + WEIGHTS[6 * MEGABYTE :],
        WEIGHTS[: 6 * MEGABYTE] + WEIGHTS[6 * MEGABYTE + 1001 :],
        b"a longer name" + WEIGHTS,
        WEIGHTS + b"one more node",
        WEIGHTS[: 6 * MEGABYTE] + bytes(1000) + WEIGHTS[6 * MEGABYTE + 1000 :],
    ],
    ids=["put in", "taken out", "before", "behind", "replaced"],
)
def test_a_small_change_makes_few_new_bytes(tmp_path, changed):
    assert new_bytes(cut(tmp_path, WEIGHTS), cut(tmp_path, changed)) <= 2 * chunks.MAX_BYTES


def test_weights_that_repeat_themselves_are_shared_as_well(tmp_path):
    """Low-entropy weights, as int8 ones are: a replaced head leaves the rest alone."""
    body = np.random.default_rng(6).normal(0, 12, 8 * MEGABYTE).astype(np.int8).tobytes()
    before = cut(tmp_path, body + WEIGHTS[:MEGABYTE])
    after = cut(tmp_path, body + WEIGHTS[MEGABYTE : 2 * MEGABYTE])
    assert new_bytes(before, after) <= MEGABYTE + chunks.MAX_BYTES


def test_the_index_has_large_files_and_survives_the_round_trip(tmp_path):
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(WEIGHTS[: 2 * MEGABYTE])
    small.write_bytes(WEIGHTS[: chunks.LARGE_BYTES - 1])
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    found = chunks.index([(one, large), (two, small)])
    assert dict(found.files) == {one: split(large)}
    assert ChunkIndex.from_bytes(found.to_bytes()) == found
    assert found.check(one, 2 * MEGABYTE) == split(large) and found.check(two, 5) == ()
    with pytest.raises(PackageError, match="make 2000000 bytes, the file has 2000001"):
        found.check(one, 2 * MEGABYTE + 1)


DIGEST = "sha256:" + "1" * 64
HOSTILE = {
    "nothing": b"",
    "not JSON": b"\x00",
    "a list": b"[]",
    "no files": b"{}",
    "files as a list": b'{"files": [1]}',
    "too deep": b"[" * 100_000,
} | {
    name: json.dumps({"files": files}).encode()
    for name, files in {
        "a file that is a path": {"../../etc": []},
        "chunks as a number": {DIGEST: 5},
        "a chunk that is text": {DIGEST: ["abc"]},
        "a chunk without a digest": {DIGEST: [[5]]},
        "an empty chunk": {DIGEST: [[0, "1" * 64]]},
        "a negative chunk": {DIGEST: [[-5, "1" * 64]]},
        "a chunk of half a byte": {DIGEST: [[0.5, "1" * 64]]},
        "a chunk that is true": {DIGEST: [[True, "1" * 64]]},
        "a chunk that fills memory": {DIGEST: [[chunks.MOST_BYTES + 1, "1" * 64]]},
        "a digest that is short": {DIGEST: [[5, "1"]]},
    }.items()
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_indexes(data):
    with pytest.raises(PackageError, match="not a chunk index"):
        ChunkIndex.from_bytes(data)


def test_an_index_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(chunks, "MAX_INDEX_BYTES", 10)
    with pytest.raises(PackageError, match="above the limit"):
        ChunkIndex.from_bytes(b'{"files": {}}')


def test_a_chunk_knows_its_end():
    assert Chunk(5, 7, DIGEST).end == 12
