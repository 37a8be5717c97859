"""The journal of vectors: what it acknowledged is read again, a torn end is cut off, damage is told."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearmesh_agent.vectors.model import Row, Write
from nearmesh_agent.vectors.store import journal as journal_file
from nearmesh_agent.vectors.store import records, segments
from nearmesh_agent.vectors.store.journal import Journal

from nearmesh.errors import (
    AlreadyRunning,
    DigestMismatch,
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    StorageFull,
)
from tests.stored_rows import DIMENSION, row, told


def written(journal: Journal, after: int = 0) -> list[tuple[int, str, list[object], list[str]]]:
    return [
        (position, write.table, [told(found) for found in write.rows], list(write.deleted))
        for position, write in journal.after(after)
    ]


def one(number: int) -> Write:
    return Write(table="books", rows=[row(f"r{number}", number)], deleted=[f"gone{number}"])


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.journal"))


def test_what_was_appended_is_read_again_in_order_also_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.append_now([one(1), Write(table="other", deleted=["x"])]) == 2
    assert journal.append_now([one(3)]) == 3
    before = written(journal)
    assert [entry[:2] for entry in before] == [(1, "books"), (2, "other"), (3, "books")]
    assert before[0][2] == [told(row("r1", 1))]
    assert written(journal, after=2) == before[2:]
    journal.close()
    again = Journal(tmp_path)
    assert (again.position, again.first, written(again)) == (3, 1, before)
    assert again.append_now([one(4)]) == 4
    again.close()


async def test_those_who_wait_together_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(fd), sync(fd)))
    journal = Journal(tmp_path)
    positions = await asyncio.gather(*(journal.append([one(number)]) for number in range(50)))
    assert positions == list(range(1, 51))
    assert len(synced) < 50
    assert await journal.append([]) == 50
    journal.close()


def test_a_long_journal_is_many_files_and_reading_on_goes_over_their_ends(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=1000)
    for number in range(1, 31):
        journal.append_now([one(number)])
    assert len(files(tmp_path)) > 5
    assert [position for position, _ in journal.after(11)] == list(range(12, 31))
    journal.close()


def test_what_is_forgotten_is_gone_and_the_rest_is_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=1000)
    for number in range(1, 31):
        journal.append_now([one(number)])
    size = journal.size_bytes
    journal.forget(17)
    assert 1 < journal.first <= 18
    assert journal.size_bytes == sum(path.stat().st_size for path in files(tmp_path)) < size
    assert [position for position, _ in journal.after(17)] == list(range(18, 31))
    with pytest.raises(NotFound, match="entry 1 of the journal was forgotten, the oldest that is there is"):
        next(journal.after(0))
    journal.close()


def test_positions_go_on_when_all_was_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearmesh_agent.vectors.store.journal._WORTH_LEAVING_BYTES", 1)
    journal = Journal(tmp_path)
    journal.append_now([one(1), one(2)])
    journal.forget(2)
    assert (journal.first, journal.size_bytes, len(files(tmp_path))) == (3, 0, 1)
    journal.close()
    again = Journal(tmp_path)
    assert (again.position, again.append_now([one(3)])) == (2, 3)
    again.close()


@pytest.mark.parametrize("cut", [1, 10, 27, 28, 29, 60])
def test_a_torn_end_is_cut_off(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path)
    journal.append_now([one(1)])
    journal.append_now([one(2)])
    journal.close()
    (path,) = files(tmp_path)
    os.truncate(path, path.stat().st_size - cut)
    again = Journal(tmp_path)
    assert [position for position, _ in again.after(0)] == [1]
    assert again.append_now([one(3)]) == 2
    assert len(written(again)) == 2
    again.close()


def test_a_group_whose_pages_came_to_the_disk_in_another_order_is_cut_off(tmp_path: Path) -> None:
    """One sync was for all of it, so that nobody was told of any."""
    journal = Journal(tmp_path)
    journal.append_now([one(1)])
    size = journal.size_bytes
    journal.append_now([one(2), one(3)])
    journal.close()
    _damage(files(tmp_path)[0], size + 40)
    again = Journal(tmp_path)
    assert again.position == 1
    again.close()


def test_damage_to_what_was_on_disk_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in (1, 2, 3):
        journal.append_now([one(number)])
    journal.close()
    _damage(files(tmp_path)[0], 40)
    with pytest.raises(DigestMismatch, match="damaged at its entry 1, which had been on disk"):
        Journal(tmp_path)


def test_damage_in_an_earlier_file_is_told_to_who_reads_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=1000)
    for number in range(1, 12):
        journal.append_now([one(number)])
    _damage(files(tmp_path)[1], 40)
    with pytest.raises(DigestMismatch, match="damaged at its entry"):
        list(journal.after(0))
    journal.close()


def test_a_full_disk_takes_back_half_a_frame_and_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.append_now([one(1)])
    write = os.write

    def half(fd: int, data: memoryview) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[: len(data) // 2])

    with monkeypatch.context() as full:
        full.setattr(os, "write", half)
        with pytest.raises(StorageFull, match="has no room for"):
            journal.append_now([one(2)])
    assert journal.append_now([one(3)]) == 2
    journal.close()
    again = Journal(tmp_path)
    assert [entry[2] for entry in written(again)] == [[told(row("r1", 1))], [told(row("r3", 3))]]
    again.close()


def test_after_a_sync_that_failed_nothing_is_taken_until_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)

    def fails(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fails)
        with pytest.raises(NotReady, match="restart the node when it is well again"):
            journal.append_now([one(1)])
    with pytest.raises(NotReady, match="Input/output error"):
        journal.append_now([one(2)])
    journal.close()


class _Told:
    """A lock that says when the journal's own thread has let it go."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._lock, self._then = threading.Lock(), [then]

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if threading.current_thread().name == "journal" and self._then:
            self._then.pop()()


def test_p3_who_forgets_all_there_was_never_takes_what_is_being_acknowledged_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The applier waits for the files while they are synced, and has them the moment they are let go."""
    monkeypatch.setattr(journal_file, "_WORTH_LEAVING_BYTES", 1)
    journal = Journal(tmp_path)
    journal.append_now([one(1)])
    journal._files = _Told(lambda: journal.forget(1))  # type: ignore[assignment]
    assert journal.append_now([one(2)]) == 2
    assert [position for position, _ in journal.after(1)] == [2]
    journal.close()
    again = Journal(tmp_path)
    assert [position for position, _ in again.after(again.first - 1)][-1:] == [2]
    again.close()


def test_a_journal_that_was_lost_goes_on_behind_what_was_saved_of_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin_after(41)
    assert (journal.position, journal.first) == (41, 42)
    assert journal.append_now([one(42)]) == 42
    journal.close()
    again = Journal(tmp_path)
    assert [position for position, _ in again.after(41)] == [42]
    with pytest.raises(DigestMismatch, match="ends at entry 42, and what was saved knows up to 50: bring"):
        again.begin_after(50)
    assert again.append_now([one(43)]) == 43
    again.close()


def test_a_store_that_is_away_for_too_long_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_bytes=100)
    journal.append_now([one(1)])
    with pytest.raises(Overloaded, match="that Milvus has not taken, the limit is 100") as told_of:
        journal.append_now([one(2)])
    assert told_of.value.retry_after_ms
    journal.close()


def test_one_process_holds_the_folder(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(AlreadyRunning):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(NotReady, match="is closed"):
        journal.append_now([one(1)])
    with pytest.raises(NotReady, match="is closed"):
        journal.wait(0, 10)


def test_waiting_ends_with_the_next_entry(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert not journal.wait(0, 0.0)
    journal.append_now([one(1)])
    assert journal.wait(0, 10)
    journal.close()


@pytest.mark.parametrize(
    ("fields", "dimension", "says"),
    [
        ({"price": float("nan")}, DIMENSION, "cannot be written down"),
        ({"price": np.float32(1)}, DIMENSION, "cannot be written down"),
        ({}, DIMENSION + 1, "different lengths"),
    ],
)
def test_a_row_that_cannot_be_written_down_is_refused_alone(
    tmp_path: Path, fields: dict[str, float], dimension: int, says: str
) -> None:
    journal = Journal(tmp_path)
    wrong = Row(id="w", vector=np.zeros(dimension, np.float32), fields=fields)
    with pytest.raises(InvalidInput, match=says):
        journal.append_now([Write(table="books", rows=[row("r"), wrong])])
    assert journal.append_now([one(1)]) == 1
    journal.close()


scalars = st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False, width=32))


@given(st.text(min_size=1), st.dictionaries(st.text(min_size=1), scalars.filter(lambda value: value not in _INFINITE)))
def test_what_is_written_down_is_read_as_it_was(row_id: str, fields: dict[str, object]) -> None:
    given_row = row(row_id, 5, fields)  # type: ignore[arg-type]
    write = records.decoded(
        records.encoded(Write(table="books", rows=[given_row, row("b")], deleted=[row_id], deleted_at=2**60))
    )
    assert [told(found) for found in write.rows] == [told(given_row), told(row("b"))]
    assert (write.table, list(write.deleted), write.deleted_at) == ("books", [row_id], 2**60)


_INFINITE = (float("inf"), float("-inf"))


@given(st.binary(max_size=200))
def test_garbage_is_no_frame(data: bytes) -> None:
    found = records.head(data[: records.HEAD_BYTES])
    assert found is None or not found.holds(data[records.HEAD_BYTES :])


@pytest.mark.parametrize("damage", [lambda size: 0, lambda size: size - 1, lambda size: size // 2])
def test_a_frame_whose_any_byte_is_wrong_does_not_hold(damage: Callable[[int], int]) -> None:
    raw = bytearray(b"".join(records.frame(7, 6, b"payload")))
    raw[damage(len(raw))] ^= 1
    found = records.head(bytes(raw[: records.HEAD_BYTES]))
    assert found is None or not found.holds(bytes(raw[records.HEAD_BYTES :]))


def test_a_file_that_says_that_it_is_huge_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / segments.name(1)
    whole = b"".join(records.frame(1, 0, b"x"))
    path.write_bytes(whole[:4] + (2**31).to_bytes(4, "little") + whole[8:])
    assert list(segments.frames(path)) == []


def _damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(bytes(data))
