"""Flower's processes as children: ended whole, started again with patience, their output in a file that stays small."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from nearmesh_controlplane.runs import child
from nearmesh_controlplane.runs.child import Child, Log, Pauses

HERE = {"PATH": os.environ["PATH"]}


async def test_it_ends_with_all_that_it_started(tmp_path: Path) -> None:
    found, read = Child("pair", tmp_path / "pair.log"), os.pipe()
    # Neither listens; each has the other end of a pipe.
    await found.start(
        ["/bin/sh", "-c", f"trap '' TERM; sleep 60 & echo up >/proc/{os.getpid()}/fd/{read[1]}; wait"], HERE
    )
    await asyncio.to_thread(os.read, read[0], 3)
    assert found.pid
    output = found._output
    assert output is not None
    async with asyncio.timeout(10.0):
        await found.stop()
    assert (found.pid, output.done()) == (0, True)
    await found.stop()
    for end in read:
        os.close(end)


async def test_what_one_that_dies_leaves_behind_ends_too(tmp_path: Path) -> None:
    found = Child("parent", tmp_path / "parent.log")
    await found.start(["/bin/sh", "-c", "sleep 60 & echo gone; exit 3"], HERE)
    async with asyncio.timeout(10.0):
        assert await found.ended() == 3
        # The pipe is closed only when nobody has it any more.
        assert found._output is not None
        await found._output
    assert found.last_words() == "gone"


def test_a_log_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAX_LOG_BYTES", 100)
    log = Log(tmp_path / "below" / "x.log")
    for number in range(50):
        log._write(f"line {number:04}\n".encode())
    assert {path.name for path in log.path.parent.iterdir()} == {"x.log", "x.log.1"}
    assert sum(path.stat().st_size for path in log.path.parent.iterdir()) <= 220
    assert log.end(1) == "line 0049"


async def test_a_disk_that_is_full_does_not_stop_the_reading(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    output = asyncio.StreamReader()
    output.feed_data(b"said")
    output.feed_eof()
    await Log(tmp_path / "file" / "x.log").take(output)
    assert "cannot be written" in caplog.text


async def test_starts_come_slower_until_one_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    now = [0.0]

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)

    monkeypatch.setattr(child.asyncio, "sleep", sleep)
    monkeypatch.setattr(child.time, "monotonic", lambda: now[0])
    pauses = Pauses()
    for ran_s in (0.1, 0.1, 0.1, 0.1, 100.0):
        pauses.started()
        now[0] += ran_s
        await pauses.wait()
    assert waits[3] > waits[0] * 2
    assert waits[4] <= child.FIRST_WAIT_S
