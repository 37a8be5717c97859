"""Notices from metadata services: the clouds' as they are described, and services that mean no good."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate

import httpx
import pytest
from nearmesh_agent.notice import metadata
from nearmesh_agent.notice.metadata import PRESETS, MetadataNotice, Preset, plain
from nearmesh_agent.notice.notice import MAX_BYTES, Notice

NOW_S = 1_700_000_000.0  # 2023-11-14T22:13:20Z
DATE = formatdate(NOW_S, usegmt=True)
ANYWHERE = plain(default_s=30.0)
# This machine's clock is wrong by a year, unless the service says no time of its own.
WRONG_S = NOW_S + 365 * 86400


@dataclass(slots=True)
class Service:
    """What a metadata service knows. Requests are answered by path; others with 404."""

    answers: dict[str, bytes | int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=lambda: {"Date": DATE})
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    # Who answers instead, with the connection's writer.
    instead: Callable[[asyncio.StreamWriter], object] | None = None
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")) and self.instead is None:
                first, *lines = head.decode().splitlines()
                method, path, _ = first.split(" ")
                named = dict(line.lower().split(": ", 1) for line in lines if line)
                self.asked.append((method, path, named))
                writer.write(self._answer(self.answers.get(path, 404)))
                await writer.drain()
            if self.instead:
                self.instead(writer)
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, found: bytes | int) -> bytes:
        status, content = (found, b"no") if isinstance(found, int) else (200, found)
        headers = {**self.headers, "Content-Length": str(len(content))}
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + content


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    found = Service()
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0) as server:
        found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield found


@pytest.fixture
async def cloud() -> AsyncIterator[Service]:
    async with service() as found:
        yield found


async def looked(cloud: Service, preset: Preset, times: int = 1) -> Notice | None:
    """What the last of several looks finds."""
    source = MetadataNotice(preset, cloud.url, every_s=1, clock=lambda: WRONG_S)
    async with httpx.AsyncClient(trust_env=False, timeout=metadata.ANSWER_WITHIN_S) as client:
        for _ in range(times):
            found = await source.look(client)
        return found


# ---- the clouds

TOKEN, ACTION = "/latest/api/token", "/latest/meta-data/spot/instance-action"


async def test_aws(cloud: Service) -> None:
    cloud.answers[TOKEN] = b"t0ken"
    assert await looked(cloud, PRESETS["aws"], 3) is None
    assert [(method, path) for method, path, _ in cloud.asked] == [("PUT", TOKEN), *[("GET", ACTION)] * 3]
    assert cloud.asked[0][2]["x-aws-ec2-metadata-token-ttl-seconds"] == "21600"
    assert cloud.asked[1][2]["x-aws-ec2-metadata-token"] == "t0ken"
    cloud.answers[ACTION] = b'{"action": "terminate", "time": "2023-11-14T22:15:20Z"}'
    assert await looked(cloud, PRESETS["aws"]) == Notice(reason="AWS: terminate", left_s=120.0)


async def test_aws_with_a_token_that_has_expired(cloud: Service) -> None:
    cloud.answers |= {TOKEN: b"t0ken", ACTION: 401}
    assert await looked(cloud, PRESETS["aws"], 2) is None
    assert [path for _, path, _ in cloud.asked] == [TOKEN, ACTION] * 2


PREEMPTED = "/computeMetadata/v1/instance/preempted"


async def test_google_cloud(cloud: Service) -> None:
    cloud.headers["Metadata-Flavor"] = "Google"
    cloud.answers[PREEMPTED] = b"FALSE"
    assert await looked(cloud, PRESETS["gcp"]) is None
    assert cloud.asked[0][2]["metadata-flavor"] == "Google".lower()
    cloud.answers[PREEMPTED] = b"TRUE"
    assert await looked(cloud, PRESETS["gcp"]) == Notice(reason="Google Cloud: preempted", left_s=30.0)
    # Somebody else's TRUE.
    del cloud.headers["Metadata-Flavor"]
    assert await looked(cloud, PRESETS["gcp"]) is None


NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"


def event(kind: str, *resources: str, at: str = "Tue, 14 Nov 2023 22:13:50 GMT") -> dict[str, object]:
    return {"EventId": "E", "EventType": kind, "Resources": resources, "EventStatus": "Scheduled", "NotBefore": at}


@pytest.mark.parametrize(
    ("events", "left_s"),
    [
        ([], None),
        ([event("Preempt", "mine")], 30.0),
        ([event("Preempt", "mine", at="")], 0.0),
        ([event("Terminate", "mine")], 30.0),
        ([event("Reboot", "mine"), event("Preempt", "other", "mine")], 30.0),
        ([event("Preempt", "other")], None),
        ([event("Reboot", "mine")], None),
        ([event("Preempt", "mine", at="soon")], None),
        ([5, {}, {"EventType": "Preempt"}, {"EventType": "Preempt", "Resources": "mine"}], None),
    ],
)
async def test_azure(cloud: Service, events: list[object], left_s: float | None) -> None:
    cloud.answers |= {NAME: b"mine", EVENTS: json.dumps({"DocumentIncarnation": 1, "Events": events}).encode()}
    found = await looked(cloud, PRESETS["azure"])
    assert (found.left_s if found else None) == left_s
    assert {headers["metadata"] for _, _, headers in cloud.asked} == {"true"}


@pytest.mark.parametrize("name", [b"", b"a\nb", b"x" * 2000, 500])
async def test_azure_without_a_name_heeds_nobodys_events(cloud: Service, name: bytes | int) -> None:
    cloud.answers |= {NAME: name, EVENTS: json.dumps({"Events": [event("Preempt", "")]}).encode()}
    assert await looked(cloud, PRESETS["azure"]) is None


# ---- any URL


@pytest.mark.parametrize(
    ("answer", "left_s"),
    [(404, None), (204, None), (500, None), (302, None), (b"", None), (b"12", 12.0), (b"2023-11-14T22:13:50Z", 30.0)],
)
async def test_any_url(cloud: Service, answer: bytes | int, left_s: float | None) -> None:
    cloud.answers["/"] = answer
    found = await looked(cloud, ANYWHERE)
    assert (found.left_s if found else None) == left_s


async def test_without_a_date_this_machines_clock_counts(cloud: Service) -> None:
    cloud.headers = {"Date": "yesterday"}
    cloud.answers["/"] = b"2023-11-14T22:13:50Z"
    assert await looked(cloud, ANYWHERE) is None, "by this clock it was a year ago"
    cloud.answers["/"] = b"2024-11-13T22:13:50Z"
    assert await looked(cloud, ANYWHERE) == Notice(reason="notice", left_s=30.0)


async def test_the_notice_that_comes_ends_the_waiting(cloud: Service) -> None:
    source = MetadataNotice(ANYWHERE, cloud.url, every_s=0.05)
    waiting = asyncio.create_task(source.notice())
    while len(cloud.asked) < 3:  # noqa: ASYNC110 - the service's own count
        await asyncio.sleep(0.01)
    assert not waiting.done()
    cloud.answers["/"] = b"7"
    assert await asyncio.wait_for(waiting, 20) == Notice(reason="notice", left_s=7.0)


# ---- services that mean no good


def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"1" * 2**16 + b"\r\n")
    writer.write(b"10000\r\n" + b"1" * 2**16 + b"\r\n")


def large(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"1" * (MAX_BYTES + 1))


def zipped(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\n5")


HOSTILE: dict[str, Callable[[asyncio.StreamWriter], object]] = {
    "silence": lambda writer: None,
    "the end": lambda writer: writer.close(),
    "garbage": lambda writer: writer.write(b"\x00" * 5000),
    "half a head": lambda writer: writer.write(b"HTTP/1.1 200 OK\r\nContent-"),
    "less than it said": lambda writer: (
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n5"),
        writer.close(),
    ),
    "endless": endless,
    "large": large,
    "a large head": lambda writer: writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10**6),
    "no status": lambda writer: writer.write(b"HTTP/1.1 abc OK\r\n\r\n"),
    "elsewhere": lambda writer: writer.write(b"HTTP/1.1 301 X\r\nLocation: http://h/\r\nContent-Length: 0\r\n\r\n"),
}


@pytest.mark.parametrize("preset", ["aws", "gcp", "azure", ""])
@pytest.mark.parametrize("what", HOSTILE)
async def test_whatever_answers_the_node_stays(
    cloud: Service, preset: str, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metadata, "ANSWER_WITHIN_S", 0.2)
    cloud.instead = HOSTILE[what]
    assert await looked(cloud, PRESETS.get(preset, ANYWHERE)) is None
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"no notice from {cloud.url}: ")


async def test_a_service_that_is_not_there(cloud: Service) -> None:
    source = MetadataNotice(ANYWHERE, "http://127.0.0.1:1/", every_s=1)
    async with httpx.AsyncClient(trust_env=False) as client:
        assert await source.look(client) is None


async def test_bytes_are_taken_as_they_are(cloud: Service) -> None:
    """Nothing is unpacked: a small answer stays small."""
    cloud.instead = zipped
    assert await looked(cloud, ANYWHERE) == Notice(reason="notice", left_s=5.0)
