"""The feed as it changes under our feet: files that are replaced, written, cut off or gone; servers in every mood."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from nearmesh_controlplane.prices import sources
from nearmesh_controlplane.prices.currencies import Currencies
from nearmesh_controlplane.prices.feed import Feed, FeedState
from nearmesh_controlplane.prices.parser import MAX_BYTES, BadFeed
from nearmesh_controlplane.prices.sources import FileSource, Source, UrlSource, open_source

URL = "https://prices.example.net/list.csv"


def csv(usd: float, node: str = "a") -> str:
    return f"node,usd_per_hour\n{node},{usd}\n"


def feed(source: Source, folder: Path, currencies: Currencies | None = None) -> Feed:
    return Feed(source, 10.0, currencies or Currencies({}), folder / "kept" / "feed.json", lambda: 5.0)


def prices(state: FeedState) -> dict[str, float]:
    return {node: row.on_demand.usd for node, row in state.table.by_node.items() if row.on_demand}


class Steps:
    """A file, and the feed that reads it, a look at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "prices.csv"
        self.source = FileSource(self.path)
        self.feed = feed(self.source, folder)
        self._writes = 0

    def move_in(self, text: str) -> None:
        aside = self.path.with_suffix(".new")
        aside.write_text(text)
        aside.replace(self.path)

    def write(self, text: str) -> None:
        """In place, at a time of its own: the file system's clock is coarser than a test is fast."""
        self.path.write_text(text)
        self._writes += 1
        os.utime(self.path, ns=(0, self._writes))

    async def look(self) -> dict[str, float]:
        await self.feed.look()
        return prices(self.feed.state)


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path)


async def test_a_file_that_is_moved_into_place_counts_at_once(steps: Steps) -> None:
    steps.move_in(csv(1))
    assert await steps.look() == {"a": 1.0}
    assert (steps.feed.state.source, steps.feed.state.read_at_s, steps.feed.state.error) == (str(steps.path), 5.0, "")
    assert not await steps.feed.look(), "nothing new"
    assert not steps.source.restless
    steps.move_in(csv(2))
    assert await steps.look() == {"a": 2.0}


async def test_a_file_that_is_written_in_place_counts_once_it_has_come_to_rest(steps: Steps) -> None:
    steps.move_in(csv(1) + "b,1\n")
    await steps.look()
    for half in ("node,usd_per_hour\n", csv(2)):
        steps.write(half)
        assert await steps.look() == {"a": 1.0, "b": 1.0}, "half of it looks like a whole list"
        assert steps.source.restless
    steps.write(csv(2) + "b,2\n")
    assert await steps.look() == {"a": 1.0, "b": 1.0}
    assert await steps.look() == {"a": 2.0, "b": 2.0}
    assert not steps.source.restless


async def test_a_file_that_changes_while_it_is_read_is_read_again(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.move_in(csv(1))
    mark = sources._mark

    def written_meanwhile(found: os.stat_result) -> tuple[int, ...]:
        monkeypatch.setattr(sources, "_mark", mark)
        steps.write(csv(2))
        return mark(found)

    monkeypatch.setattr(sources, "_mark", written_meanwhile)
    assert await steps.look() == {}
    assert await steps.look() == {"a": 2.0}


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda steps: steps.path.unlink(), "it cannot be read: No such file or directory"),
        (lambda steps: steps.move_in(""), "it is empty"),
        (lambda steps: steps.move_in("node,usd_per_hour\na,1"), "its last line has no end"),
        (lambda steps: steps.move_in("node,usd_per_hour\na,free\n"), "line 2: usd_per_hour is 'free'"),
        (lambda steps: steps.move_in(" " * (MAX_BYTES + 1)), "it has more than 8388608 bytes"),
        (lambda steps: (steps.path.unlink(), steps.path.mkdir()), "it is not a file"),
        (lambda steps: (steps.path.unlink(), os.mkfifo(steps.path)), "it is not a file"),
        (lambda steps: (steps.path.unlink(), steps.path.symlink_to("/dev/zero")), "it is not a file"),
        (lambda steps: (steps.path.unlink(), steps.path.symlink_to(steps.path)), "it cannot be read: Too many levels"),
    ],
)
async def test_a_bad_feed_changes_no_price_and_says_so_once(
    steps: Steps, break_it: Callable[[Steps], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    steps.move_in(csv(1))
    await steps.look()
    break_it(steps)
    assert await steps.feed.look(), "its state is another"
    for _ in range(3):
        assert prices(steps.feed.state) == {"a": 1.0}
        assert said in steps.feed.state.error and steps.feed.state.read_at_s == 5.0
        assert not await steps.feed.look()
    (record,) = caplog.records
    assert said in record.message and "the prices read before stay in force" in record.message


async def test_a_feed_that_is_good_again_has_no_error(steps: Steps) -> None:
    steps.move_in(csv(1))
    await steps.look()
    steps.path.unlink()
    await steps.look()
    assert steps.feed.state.error
    steps.write(csv(1))
    await steps.look()
    assert await steps.look() == {"a": 1.0}
    assert steps.feed.state.error == ""
    steps.move_in("nonsense")
    await steps.look()
    assert steps.feed.state.error
    steps.move_in(csv(3))
    assert (await steps.look(), steps.feed.state.error) == ({"a": 3.0}, "")


async def test_p3_the_next_start_knows_the_last_good_prices(steps: Steps, tmp_path: Path) -> None:
    steps.move_in("\ufeff" + csv(1))
    await steps.look()
    steps.move_in("nonsense")
    await steps.look()
    again = feed(steps.source, tmp_path)
    assert prices(again.state) == {"a": 1.0}
    assert (again.state.read_at_s, again.state.source) == (5.0, str(steps.path))
    assert feed(FileSource(tmp_path / "other.csv"), tmp_path).state.table == FeedState().table, "another feed's prices"


@pytest.mark.parametrize(
    "kept", [b"", b"{", b"[]", b"\xff", b'{"source": 1}', json.dumps({"source": "SOURCE"}).encode()]
)
def test_a_copy_that_is_of_no_use_is_no_reason_not_to_start(kept: bytes, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    path = tmp_path / "prices.csv"
    (tmp_path / "kept" / "feed.json").write_bytes(kept.replace(b"SOURCE", str(path).encode()))
    assert feed(FileSource(path), tmp_path).state == FeedState(source=str(path))


async def test_a_full_disk_costs_the_copy_and_no_price(
    steps: Steps, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    steps.move_in(csv(1))
    assert await steps.look() == {"a": 1.0}
    assert "was not written" in caplog.text


# URLs


class Server:
    """Answers as it is told, and notes what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def source(self, url: str = URL) -> UrlSource:
        return UrlSource(url, httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def ok(text: str, **headers: str) -> httpx.Response:
    # As a stream, or httpx has unpacked it before anyone reads.
    return httpx.Response(200, stream=httpx.ByteStream(text.encode()), headers=headers)


async def test_a_server_is_asked_for_what_is_new(tmp_path: Path) -> None:
    server = Server(
        ok(csv(1), etag='"1"', **{"last-modified": "Mon, 01 Jan 2026 00:00:00 GMT"}),
        httpx.Response(304),
        ok(csv(2), etag='"2"'),
        ok(csv(2)),
        ok(csv(3)),
    )
    found = feed(server.source(), tmp_path)
    seen = []
    for _ in range(5):
        changed = await found.look()
        seen.append((changed, prices(found.state)["a"]))
    assert seen == [(True, 1.0), (False, 1.0), (True, 2.0), (False, 2.0), (True, 3.0)]
    asked = [(r.headers.get("if-none-match"), r.headers.get("if-modified-since")) for r in server.requests]
    assert asked == [
        (None, None),
        ('"1"', "Mon, 01 Jan 2026 00:00:00 GMT"),
        ('"1"', "Mon, 01 Jan 2026 00:00:00 GMT"),
        ('"2"', None),
        (None, None),
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(503), "it answers 503 Service Unavailable"),
        (httpx.Response(204), "it answers 204 No Content"),
        (httpx.ConnectError("refused"), "it cannot be fetched: refused"),
        (httpx.ReadTimeout(""), "it cannot be fetched: ReadTimeout"),
        (TimeoutError(), "there was no whole answer within 30 s"),
        (ok("<html></html>"), "its last line has no end"),
        (ok(" " * (MAX_BYTES + 1)), "it has more than 8388608 bytes"),
        (ok(csv(1), **{"content-encoding": "gzip"}), "it answers in content-encoding 'gzip', which was not asked for"),
        (httpx.Response(302, headers={"location": "http://prices.example.net/"}), "it redirects from https to http"),
        (httpx.Response(302, headers={"location": "file:///etc/passwd"}), "it redirects from https to file"),
        (httpx.Response(302, headers={"location": "https://x:y/"}), "it cannot be fetched: Invalid URL"),
        (httpx.Response(302), "it answers 302 Found"),
    ],
)
async def test_a_server_that_has_no_prices(answer: httpx.Response | Exception, said: str, tmp_path: Path) -> None:
    server = Server(ok(csv(1), etag='"1"'), answer, ok(csv(1), etag='"1"'))
    found = feed(server.source(), tmp_path)
    await found.look()
    assert await found.look()
    assert said in found.state.error
    assert prices(found.state) == {"a": 1.0}
    # The same list again, whole: "not modified" would not say whether it is good.
    await found.look()
    assert found.state.error == ""
    assert "if-none-match" not in server.requests[2].headers


async def test_a_server_that_has_nothing_new_at_the_first_question_is_wrong() -> None:
    with pytest.raises(BadFeed, match="it answers 304 Not Modified"):
        await Server(httpx.Response(304)).source().fetch()


async def test_redirects_of_one_scheme_are_followed_and_end(tmp_path: Path) -> None:
    there = httpx.Response(301, headers={"location": "https://elsewhere.example.net/x"})
    server = Server(there, ok(csv(1)))
    found = feed(server.source(), tmp_path)
    await found.look()
    assert prices(found.state) == {"a": 1.0}
    assert str(server.requests[1].url) == "https://elsewhere.example.net/x"
    with pytest.raises(BadFeed, match="it redirects more than 5 times"):
        await Server(*[there] * 6).source().fetch()


async def test_validators_that_cannot_be_sent_back_are_not(tmp_path: Path) -> None:
    response = ok(csv(1))
    response.headers = httpx.Headers([(b"etag", "\u00e9".encode("latin-1"))], encoding="latin-1")
    server = Server(response, ok(csv(2)))
    found = feed(server.source(), tmp_path)
    await found.look()
    await found.look()
    assert prices(found.state) == {"a": 2.0}


def test_a_source_is_named_without_its_secrets() -> None:
    source = open_source("https://me:secret@prices.example.net:8443/list.json?sig=secret")
    assert source.name == "https://prices.example.net:8443/list.json"
    assert open_source("/etc/nearmesh/prices.csv").name == "/etc/nearmesh/prices.csv"
