"""Registries as they are: that know no ranges, send whoever asks elsewhere, close connections, or say nothing."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from nearmesh_agent.store import registry as registries
from nearmesh_agent.store.registry import HttpRegistry
from nearmesh_agent.store.source import fill, read_all

from nearmesh.errors import DigestMismatch, InvalidInput, NotFound, Unreachable
from nearmesh.oci import digest_bytes

DATA = bytes(range(256)) * 1000
DIGEST = digest_bytes(DATA)
PATH = f"/v2/team/m/blobs/{DIGEST}"


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Callable[[Asked], None]) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.answer = answer
        self.connections = 0
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def process_request(self, request: object, address: object) -> None:
        self.connections += 1
        super().process_request(request, address)  # type: ignore[arg-type]

    def handle_error(self, request: object, address: object) -> None:
        """A client that leaves is no news."""


class Asked(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.answer(self)

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def range(self) -> tuple[int, int]:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1

    def part(self) -> None:
        first, end = self.range()
        if first >= len(DATA):
            self.reply(416)
        else:
            data = DATA[first:end]
            self.reply(206, data, Content_Range=f"bytes {first}-{first + len(data) - 1}/{len(DATA)}")


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Asked], None]], Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[Asked], None]) -> Server:
        server = Server(answer)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


Serve = Callable[[Callable[[Asked], None]], Server]


def read(registry: HttpRegistry, offset: int, size: int) -> bytes:
    part = bytearray(size)
    reader = registry.open(DIGEST, offset, size, 0.0)
    try:
        return bytes(part[: fill(reader, memoryview(part))])
    finally:
        reader.close()


def test_ranges_over_one_connection(serve: Serve) -> None:
    server = serve(Asked.part)
    registry = HttpRegistry(server.url, "team/m")
    for offset, size in ((0, 10), (100, 50_000), (len(DATA) - 7, 7)):
        assert read(registry, offset, size) == DATA[offset : offset + size]
    assert server.connections == 1 and set(server.asked) == {PATH}
    registry.close()


def test_a_registry_that_knows_no_ranges(serve: Serve) -> None:
    registry = HttpRegistry(serve(lambda asked: asked.reply(200, DATA)).url, "team/m")
    assert read(registry, 100_000, 30) == DATA[100_000:100_030]
    assert read(registry, 0, len(DATA)) == DATA
    registry.close()


def test_a_registry_that_keeps_its_blobs_elsewhere(serve: Serve) -> None:
    elsewhere = serve(Asked.part)
    location = f"{elsewhere.url}/bucket/x?signed=1"
    registry = HttpRegistry(serve(lambda asked: asked.reply(307, Location=location)).url, "team/m")
    assert read(registry, 5, 10) == DATA[5:15]
    assert elsewhere.asked == ["/bucket/x?signed=1"]
    registry.close()


@pytest.mark.parametrize("location", ["ftp://host/x", ""])
def test_a_redirection_to_nowhere_ends(serve: Serve, location: str) -> None:
    registry = HttpRegistry(serve(lambda asked: asked.reply(307, Location=location)).url, "team/m")
    with pytest.raises(Unreachable):
        read(registry, 0, 10)
    registry.close()


def test_from_tls_nobody_is_sent_to_none() -> None:
    with pytest.raises(Unreachable, match="not HTTPS"):
        registries._redirected("http://host/x", ("https", "registry:443"), "a blob")


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (401, Unreachable), (403, Unreachable), (500, Unreachable), (416, DigestMismatch)],
)
def test_what_a_registry_refuses(serve: Serve, status: int, error: type[Exception]) -> None:
    registry = HttpRegistry(serve(lambda asked: asked.reply(status, b"no")).url, "team/m")
    with pytest.raises(error):
        read(registry, 0, 10)
    with pytest.raises(error):
        registry.manifest("1")
    registry.close()


def test_a_blob_that_is_shorter_than_the_version_says(serve: Serve) -> None:
    registry = HttpRegistry(serve(Asked.part).url, "team/m")
    for offset, size in ((len(DATA) - 5, 10), (len(DATA), 10)):
        with pytest.raises(DigestMismatch):
            read(registry, offset, size)
    registry.close()


def test_connections_that_the_registry_has_closed_meanwhile_are_no_failure(serve: Serve) -> None:
    def once(asked: Asked) -> None:
        asked.part()
        # Without a word of it in the headers.
        asked.close_connection = True

    server = serve(once)
    registry = HttpRegistry(server.url, "team/m")
    for _ in range(3):
        assert read(registry, 0, 10) == DATA[:10]
    assert server.connections == 3
    registry.close()


def test_an_answer_that_breaks_off_is_shorter_and_its_connection_not_used_again(serve: Serve) -> None:
    def half(asked: Asked) -> None:
        asked.send_response(206)
        asked.send_header("Content-Length", "1000")
        asked.end_headers()
        asked.wfile.write(DATA[:500])
        asked.close_connection = True

    registry = HttpRegistry(serve(half).url, "team/m")
    assert read(registry, 0, 1000) == DATA[:500]
    assert len(read_all(registry, DIGEST, 1000)) == 500
    registry.close()


def test_a_registry_that_says_nothing_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "TIMEOUT_S", 0.1)
    over = threading.Event()
    registry = HttpRegistry(serve(lambda asked: (over.wait(10), None)[1]).url, "team/m")
    with pytest.raises(Unreachable, match="did not answer"):
        read(registry, 0, 10)
    over.set()
    registry.close()


def test_what_is_under_way_can_be_broken_off(serve: Serve) -> None:
    over = threading.Event()

    def stall(asked: Asked) -> None:
        asked.send_response(206)
        asked.send_header("Content-Length", "1000")
        asked.end_headers()
        asked.wfile.write(DATA[:500])
        over.wait(10)

    registry = HttpRegistry(serve(stall).url, "team/m")
    threading.Timer(0.1, registry.break_off).start()
    began_s = time.monotonic()
    try:
        assert len(read(registry, 0, 1000)) <= 500
    except Unreachable:
        pass
    assert time.monotonic() - began_s < 5
    over.set()
    # Another transfer may use it.
    registry.close()
    with pytest.raises(Unreachable, match="broken off"):
        read(registry, 0, 10)


@pytest.mark.parametrize("url", ["", "host:80", "ftp://host", "https://"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InvalidInput):
        HttpRegistry(url, "m")
