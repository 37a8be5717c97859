"""The emulated WAN without sockets: when bytes are due, in what order they leave, and how its config is checked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nearmesh.devmesh.wan.control import answer
from nearmesh.devmesh.wan.delay import End, Lane, Pipe
from nearmesh.devmesh.wan.link import Link, LinkSettings
from nearmesh.devmesh.wan.server import load
from nearmesh.errors import ConfigError


class FakeTransport:
    """Records what a pipe does to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.reading = True
        self.events: list[str] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def write_eof(self) -> None:
        self.events.append("eof")

    def abort(self) -> None:
        self.events.append("reset")

    def is_closing(self) -> bool:
        return "reset" in self.events

    def get_extra_info(self, name: str) -> Any:
        return None

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def lane(delay_s: float = 0.0, jitter_s: float = 0.0, bytes_per_s: float = 0.0) -> Lane:
    return Lane(delay_s, jitter_s, bytes_per_s, "test")


def pipe_between(lane: Lane, limit_bytes: int = 100) -> tuple[Pipe, FakeTransport, FakeTransport]:
    source, sink = FakeTransport(), FakeTransport()
    pipe = Pipe(lane, floor_s=0.0, limit_bytes=limit_bytes)
    pipe.source = source  # type: ignore[assignment]
    pipe.attach(sink)  # type: ignore[arg-type]
    return pipe, source, sink


@pytest.mark.parametrize(
    ("delay_s", "bytes_per_s", "sizes", "expected"),
    [
        (0.1, 0.0, [10, 10], [1.1, 1.1]),
        (0.1, 100.0, [10], [1.2]),
        (0.1, 100.0, [10, 10], [1.2, 1.3]),
        (0.0, 0.0, [10], [1.0]),
    ],
)
def test_bytes_are_due_after_those_before_them_and_the_delay(
    delay_s: float, bytes_per_s: float, sizes: list[int], expected: list[float]
) -> None:
    way = lane(delay_s, 0.0, bytes_per_s)
    assert [way.due_s(size, 1.0) for size in sizes] == pytest.approx(expected)


def test_jitter_stays_within_its_bound_and_is_repeatable() -> None:
    one, two = lane(0.1, 0.02), lane(0.1, 0.02)
    found = [one.due_s(1, 0.0) for _ in range(200)]
    assert all(0.1 <= due <= 0.12 for due in found) and max(found) - min(found) > 0.01
    assert found == [two.due_s(1, 0.0) for _ in range(200)]


async def test_a_late_chunk_keeps_those_behind_it_in_order() -> None:
    way = lane(0.05)
    pipe, _, sink = pipe_between(way)
    pipe.push(b"slow")
    way.delay_s = 0.0
    pipe.push(b"quick")
    assert sink.written == []
    pipe.push(End.EOF)
    assert await pipe.ended is End.EOF
    assert (sink.written, sink.events) == ([b"slow", b"quick"], ["eof"])


async def test_nothing_moves_while_frozen_and_all_of_it_after() -> None:
    way = lane()
    pipe, _, sink = pipe_between(way)
    way.frozen = True
    pipe.push(b"held")
    await asyncio.sleep(0)
    assert (sink.written, pipe.held_bytes) == ([], 4)
    way.frozen = False
    pipe.wake()
    assert (sink.written, pipe.held_bytes, way.delivered_bytes) == ([b"held"], 0, 4)


async def test_a_stalled_sink_pauses_the_source_and_holds_no_more_than_the_limit() -> None:
    pipe, source, sink = pipe_between(lane(), limit_bytes=100)
    pipe.sink_full(True)
    while source.reading:
        pipe.push(b"x" * 30)
    assert pipe.held_bytes == 120 and sink.written == []
    pipe.sink_full(False)
    assert source.reading and pipe.held_bytes == 0


async def test_a_reset_comes_after_the_bytes_before_it() -> None:
    pipe, _, sink = pipe_between(lane())
    pipe.push(b"last words")
    pipe.push(End.RESET)
    pipe.push(b"never")
    assert (sink.written, sink.events) == ([b"last words"], ["reset"])
    assert pipe.ended.result() is End.RESET


async def test_what_is_discarded_frees_its_memory_and_its_source() -> None:
    pipe, source, sink = pipe_between(lane(), limit_bytes=10)
    pipe.sink_full(True)
    pipe.push(b"x" * 50)
    assert not source.reading
    pipe.discard()
    assert source.reading and pipe.held_bytes == 0 and sink.written == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "wan.json: Expecting"),
        ("[]", "expected a JSON object"),
        ({"links": [{"name": "a"}]}, "is missing"),
        ({"link": []}, "did you mean 'links'"),
        ({"links": [{"round_trip_ms": -1.0}]}, "0 or more"),
        ({"links": [{"target": "nowhere"}]}, "'nowhere' is not host:port"),
        ({"links": [{}, {}]}, "two links are called 'a'"),
    ],
)
def test_a_wrong_config_is_explained(tmp_path: Path, body: Any, message: str) -> None:
    whole = {"name": "a", "client_region": "r", "node": "n", "target": "127.0.0.1:1", "round_trip_ms": 1}
    if isinstance(body, dict) and message != "is missing":
        body = {key: [whole | link for link in links] for key, links in body.items()}
    path = tmp_path / "wan.json"
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    with pytest.raises(ConfigError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nonsense\n", "not JSON"),
        (b"7\n", "a JSON object"),
        (b'{"command": "burn"}\n', "not one of stats, cut"),
        (b'{"command": "cut", "link": "moon"}\n', "no link is called 'moon'; there are a"),
        (b'{"command": "set", "link": "a", "round_trip_ms": "far"}\n', "each a number"),
        (b'{"command": "set", "link": "a", "colour": 1}\n', "`set` takes"),
    ],
)
async def test_a_wrong_command_is_explained_and_changes_nothing(line: bytes, message: str) -> None:
    settings = LinkSettings(name="a", client_region="r", node="n", target="127.0.0.1:1", round_trip_ms=10)
    links = {"a": Link(settings)}
    found = await answer(links, line)
    assert not found["ok"] and message in found["error"]
    assert links["a"].stats()["round_trip_ms"] == 10
