"""What counts as a notice, and what a node does not leave for."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from nearmesh_agent.config import NoticeConfig
from nearmesh_agent.notice.file import THREAD, FileNotice
from nearmesh_agent.notice.metadata import MetadataNotice
from nearmesh_agent.notice.notice import MAX_BYTES, Announced, NoNotice, Notice, instant, judged, parse, said
from nearmesh_agent.notice.source import first_notice, sources

from nearmesh.errors import ConfigError, InvalidInput

NOW_S = 1_700_000_000.0  # 2023-11-14T22:13:20Z
DEFAULT_S = 30.0


def read(content: bytes | str, written_s: float = NOW_S) -> Announced:
    raw = content.encode() if isinstance(content, str) else content
    return parse(raw, written_s=written_s, default_s=DEFAULT_S)


@pytest.mark.parametrize(
    ("content", "reason", "left_s"),
    [
        ("", "notice", DEFAULT_S),
        (" \n", "notice", DEFAULT_S),
        ("25", "notice", 25),
        ("25.5\n", "notice", 25.5),
        ("0", "notice", 0),
        ("2023-11-14T22:13:50Z", "notice", 30),
        ("2023-11-14T23:13:50+01:00", "notice", 30),
        ("2023-11-14 22:13:50", "notice", 30),
        ("Tue, 14 Nov 2023 22:13:50 GMT", "notice", 30),
        ('{"action": "terminate", "time": "2023-11-14T22:15:20Z"}', "terminate", 120),
        ('{"action": "hibernate"}', "hibernate", DEFAULT_S),
        ('{"seconds": 5, "reason": "rent is over"}', "rent is over", 5),
        ('{"left_s": "5"}', "notice", 5),
        ('{"action": "a\\u0000b\\n\\tc", "seconds": 1}', "a b c", 1),
    ],
)
def test_a_notice(content: str, reason: str, left_s: float) -> None:
    found = read(content)
    assert (found.reason, found.at_s) == (reason, NOW_S + left_s)
    assert judged(found, now_s=NOW_S) == Notice(reason=reason, left_s=left_s)


@pytest.mark.parametrize(
    "content",
    [
        "soon",
        "-5",
        "nan",
        "inf",
        "1e999",
        "TRUE",
        "<html><body>Log in to the network</body></html>",
        "{",
        "{}",
        "[]",
        "[1]",
        "[" * 50_000,
        '{"a":' * 10_000,
        '{"status": "fine"}',
        '{"action": null}',
        '{"action": ""}',
        '{"action": false}',
        '{"action": "None"}',
        "Mon, 1 Jan 2024 00:00:00 +999999999999999999",
        '{"time": null}',
        '{"time": "tomorrow"}',
        '{"time": 5}',
        '{"time": "0001-01-01T00:00:00+14:00"}',
        '{"seconds": -1}',
        '{"seconds": true}',
        '{"seconds": [1]}',
        '{"seconds": 1e999}',
        '{"seconds": "9" }'.replace("9", "9" * 5000),
        b"\xff\xfe\x00",
        b"1" * (MAX_BYTES + 1),
    ],
)
def test_no_notice(content: bytes | str) -> None:
    with pytest.raises(NoNotice):
        judged(read(content), now_s=NOW_S)


@pytest.mark.parametrize(
    ("in_s", "left_s"),
    [(-60, 0), (-1, 0), (0, 0), (1, 1), (3600, 3600), (3601, None), (10**9, None)],
)
def test_a_time_counts_when_it_is_near(in_s: float, left_s: float | None) -> None:
    found = judged(Announced(reason="r", at_s=NOW_S + in_s), now_s=NOW_S)
    assert (found.left_s if found else None) == left_s


@pytest.mark.parametrize("ago_s", [61, 86400])
def test_a_time_that_is_long_over_is_no_notice(ago_s: float) -> None:
    with pytest.raises(NoNotice, match=f"was due {ago_s} s ago: it is an old one, or a clock is wrong"):
        judged(Announced(reason="r", at_s=NOW_S - ago_s), now_s=NOW_S)


def test_words_from_outside_stay_on_their_line() -> None:
    assert said("a\nb\x1b[31m") == "a b [31m"
    assert said("") == "notice"
    assert len(said("x" * 10**6)) == 120


def test_times_with_and_without_a_zone() -> None:
    assert instant("2023-11-14T22:13:20Z") == instant("2023-11-14T22:13:20") == NOW_S


# ---- files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notice"


def looking(path: Path, now_s: float = NOW_S) -> FileNotice:
    return FileNotice(path, every_s=1, default_s=DEFAULT_S, clock=lambda: now_s)


def put(path: Path, content: str, written_s: float = NOW_S) -> None:
    path.write_text(content)
    os.utime(path, (written_s, written_s))


def test_a_file_is_a_notice_once_it_is_there(path: Path) -> None:
    source = looking(path)
    assert source.look() is None
    put(path, "")
    assert source.look() == Notice(reason="notice", left_s=DEFAULT_S)


def test_seconds_in_a_file_count_from_when_it_was_written(path: Path) -> None:
    put(path, "25", NOW_S - 10)
    assert looking(path).look() == Notice(reason="notice", left_s=15)


def test_what_is_no_notice_is_said_once_and_a_change_heeded(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = looking(path)
    put(path, "25", NOW_S - 3600)
    with caplog.at_level(logging.WARNING):
        assert [source.look() for _ in range(3)] == [None] * 3
        assert len(caplog.messages) == 1 and "was due 3575 s ago" in caplog.messages[0]
        put(path, "nonsense")
        assert [source.look() for _ in range(3)] == [None] * 3
        assert len(caplog.messages) == 2
    put(path, "25")
    assert source.look() == Notice(reason="notice", left_s=25)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_no_notice(path: Path, make: Any) -> None:
    make(path)
    assert looking(path).look() is None


def test_a_file_beyond_all_bounds_is_read_to_the_bound(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**10)
    assert looking(path).look() is None


async def test_the_file_that_comes_ends_the_waiting(path: Path) -> None:
    source = FileNotice(path, every_s=0.05, default_s=DEFAULT_S)
    waiting = asyncio.create_task(source.notice())
    put(path, "7", time.time())
    assert 0 < (await asyncio.wait_for(waiting, 20)).left_s <= 7


def test_a_disk_that_does_not_answer_keeps_no_node_from_ending(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Event(), threading.Event()
    source = looking(path)

    def stuck() -> None:
        asked.set()
        answer.wait(60)

    async def node() -> None:
        waiting = asyncio.create_task(source.notice())
        await asyncio.to_thread(asked.wait)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    monkeypatch.setattr(source, "look", stuck)
    ended = threading.Thread(target=lambda: asyncio.run(node()), daemon=True)
    ended.start()
    ended.join(20)
    try:
        assert not ended.is_alive()
        assert any(thread.name.startswith(THREAD) for thread in threading.enumerate()), "the process ends over it"
    finally:
        answer.set()


# ---- who is listened to


class Mine:
    """A source of one's own."""

    def __init__(self, config: NoticeConfig) -> None:
        self._left_s = config.default_s

    async def notice(self) -> Any:
        return Notice(reason="mine", left_s=self._left_s)


class Broken(Mine):
    async def notice(self) -> Any:
        raise RuntimeError("on purpose")


class Wrong(Mine):
    async def notice(self) -> Any:
        return "leave!"


class Never(Mine):
    async def notice(self) -> Any:
        await asyncio.get_running_loop().create_future()


class Endless(Mine):
    async def notice(self) -> Any:
        return Notice(reason="x", left_s=float("nan"))


class Useless:
    def __init__(self, config: NoticeConfig) -> None:
        """It has no `notice`."""


HERE = "tests.unit.test_notice"


def test_nobody_is_listened_to_by_default() -> None:
    assert sources(NoticeConfig()) == []


def test_those_that_the_table_names() -> None:
    config = NoticeConfig(file=Path("f"), metadata="aws", source=f"{HERE}:Mine")
    assert [type(source) for source in sources(config)] == [FileNotice, MetadataNotice, Mine]
    assert [type(source) for source in sources(NoticeConfig(url="http://h/"))] == [MetadataNotice]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("no.such.module:Class", "No module named"),
        (f"{HERE}:Missing", "has no attribute 'Missing'"),
        (f"{HERE}:Useless", "has no method `notice`"),
        (f"{HERE}:NOW_S", "not callable"),
    ],
)
def test_a_source_that_cannot_be_had(source: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        sources(NoticeConfig(source=source))


@pytest.mark.parametrize(
    "values",
    [{"every_s": 0.0}, {"every_s": 61.0}, {"default_s": 0.0}, {"url": "file:///etc/x"}, {"source": "no colon"}],
)
def test_a_table_that_is_wrong(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        NoticeConfig(**values)


@pytest.mark.parametrize("beside", [Broken, Wrong, Never, Endless])
async def test_the_first_word_counts_whatever_becomes_of_the_others(beside: type[Any]) -> None:
    config = NoticeConfig(default_s=9.0)
    found = await asyncio.wait_for(first_notice([beside(config), Mine(config)]), 20)
    assert found == Notice(reason="mine", left_s=9.0)


@pytest.mark.parametrize("source", [Broken, Wrong, Endless])
async def test_a_source_that_fails_does_not_end_the_node(source: type[Any], caplog: pytest.LogCaptureFixture) -> None:
    waiting = asyncio.create_task(first_notice([source(NoticeConfig())]))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done() and source.__name__ in caplog.text
    waiting.cancel()
