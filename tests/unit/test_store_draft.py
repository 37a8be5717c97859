"""A blob on its way to the disk: in any order, right or not at all, and taken up again whatever broke it off."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from nearmesh_agent.store.draft import Draft
from nearmesh_agent.store.pieces import FIXED_BYTES, Pieces

from nearmesh.chunks import Chunk
from nearmesh.errors import DigestMismatch
from nearmesh.oci import WEIGHT_TYPE, Descriptor, digest_bytes

DATA = random.Random(5).randbytes(5 * 100_000 + 17)


def chunks(data: bytes = DATA, size: int = 100_000) -> list[Chunk]:
    parts = [(at, data[at : at + size]) for at in range(0, len(data), size)]
    return [Chunk(at, len(part), digest_bytes(part)) for at, part in parts]


def draft(folder: Path, *, index: bool = True, data: bytes = DATA) -> Draft:
    blob = Descriptor(WEIGHT_TYPE, digest_bytes(data), len(data), "weights")
    return Draft(folder / "drafts", Pieces(blob, chunks(data) if index else ()))


def part(found: Draft, number: int) -> memoryview:
    chunk = found.pieces.chunks[number]
    return memoryview(DATA)[chunk.offset : chunk.end]


def test_chunks_arrive_in_any_order_and_make_the_file(tmp_path: Path) -> None:
    found = draft(tmp_path)
    assert found.open() == []
    for number in (3, 0, 5, 1, 4, 2):
        assert found.put(number, part(found, number)) and found.has(number)
        found.hash_on()
    assert found.read(3) == part(found, 3)
    found.finish(tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == DATA
    assert (tmp_path / "blob").stat().st_mode & 0o777 == 0o644
    assert list((tmp_path / "drafts").iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, FIXED_BYTES, FIXED_BYTES + 1])
def test_every_size(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    found = Draft(tmp_path, Pieces(Descriptor(WEIGHT_TYPE, digest_bytes(data), size)))
    found.open()
    for number, chunk in enumerate(found.pieces.chunks):
        found.put(number, memoryview(data)[chunk.offset : chunk.end])
    found.finish(tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == data


def test_what_is_behind_is_what_lies_in_a_row(tmp_path: Path) -> None:
    found = draft(tmp_path)
    found.open()
    found.put(1, part(found, 1))
    assert found.behind_bytes == 0
    found.put(0, part(found, 0))
    assert found.behind_bytes == 200_000
    found.hash_on()
    assert found.behind_bytes == 0


def test_p5_a_wrong_chunk_is_not_written(tmp_path: Path) -> None:
    found = draft(tmp_path)
    found.open()
    with pytest.raises(DigestMismatch, match="from its byte 200000 on came"):
        found.put(2, part(found, 1))
    assert not found.has(2)


def test_p5_without_an_index_the_whole_file_tells(tmp_path: Path) -> None:
    found = draft(tmp_path, index=False)
    found.open()
    wrong = bytearray(DATA)
    wrong[7] ^= 1
    found.put(0, memoryview(wrong))
    with pytest.raises(DigestMismatch, match="what came makes"):
        found.finish(tmp_path / "blob")
    assert not (tmp_path / "blob").exists() and list((tmp_path / "drafts").iterdir()) == []


@pytest.mark.parametrize("index", [True, False], ids=["with an index", "without"])
def test_what_was_written_before_a_kill_is_not_fetched_again(tmp_path: Path, index: bool) -> None:
    data = DATA * 8
    blob = Descriptor(WEIGHT_TYPE, digest_bytes(data), len(data), "weights")

    def made() -> Draft:
        return Draft(tmp_path / "drafts", Pieces(blob, chunks(data) if index else ()))

    killed = made()
    killed.open()
    for number in (0, 2):
        chunk = killed.pieces.chunks[number]
        killed.put(number, memoryview(data)[chunk.offset : chunk.end])
    # Nothing is closed, nothing synced.
    found = made()
    assert found.open() == [0, 2]
    for number, chunk in enumerate(found.pieces.chunks):
        if number not in (0, 2):
            found.put(number, memoryview(data)[chunk.offset : chunk.end])
    found.finish(tmp_path / "blob")
    assert hashlib.sha256((tmp_path / "blob").read_bytes()).hexdigest() == blob.digest.removeprefix("sha256:")
    killed.close()


def _scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(200_003)
        file.write(b"torn")


JOURNALS: dict[str, tuple[Callable[[Path, Path], object], list[int]]] = {
    "a torn last line": (lambda path, journal: os.truncate(journal, journal.stat().st_size - 3), [0]),
    "a chunk that never reached the disk": (lambda path, journal: _scribble(path), [0]),
    "no journal": (lambda path, journal: journal.unlink(), []),
    "no file": (lambda path, journal: path.unlink(), []),
    "another size": (lambda path, journal: os.truncate(path, 10), []),
    "noise": (lambda path, journal: journal.write_bytes(b"\xff\x00\n99 sha256:x\n-1 y\n\n2\n"), []),
}


@pytest.mark.parametrize("damage", JOURNALS)
def test_p5_a_journal_is_believed_only_as_far_as_the_bytes_agree(tmp_path: Path, damage: str) -> None:
    before = draft(tmp_path)
    before.open()
    for number in (0, 2):
        before.put(number, part(before, number))
    before.close()
    change, proven = JOURNALS[damage]
    change(before.path, before.path.with_name(before.path.name + ".done"))
    found = draft(tmp_path)
    assert found.open() == proven
    found.close()


def test_after_it_was_closed_nothing_is_written(tmp_path: Path) -> None:
    found = draft(tmp_path)
    found.open()
    found.close()
    found.close()
    assert found.put(0, part(found, 0)) is False and found.read(0) == b""


def test_a_disk_that_is_too_small_says_so_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        draft(tmp_path).open()
