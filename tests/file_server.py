"""An HTTP server of files on loopback that can be told to misbehave: what tests of downloads stand on."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class Files:
    """What the server has, and what it was asked."""

    # By path; queries are not looked at.
    contents: dict[str, bytes] = field(default_factory=dict)
    # By path, where it leads.
    redirects: dict[str, str] = field(default_factory=dict)
    # By path, the statuses of the next answers.
    statuses: dict[str, list[int]] = field(default_factory=dict)
    # By path, after how many bytes the next answers are cut.
    cuts: dict[str, list[int]] = field(default_factory=dict)
    # By path, after how many bytes the next answer waits for `go`.
    holds: dict[str, int] = field(default_factory=dict)
    go: threading.Event = field(default_factory=threading.Event)
    # Answers with all of a file, whatever range is asked for.
    ignores_ranges: bool = False
    # Called with each request's path and headers; what it returns, if anything, is answered: status and headers.
    guard: Callable[[str, Mapping[str, str]], tuple[int, dict[str, str]] | None] | None = None
    # Path and range of each request, and the bytes of each path that were sent.
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    url: str = ""

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")


@contextmanager
def serving(files: Files | None = None) -> Iterator[Files]:
    """Serves until the end of the block."""
    found = files or Files()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(self, found)

        def log_message(self, format: str, *args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(request: BaseHTTPRequestHandler, files: Files) -> None:
    path = request.path.partition("?")[0]
    files.asked.append((path, request.headers.get("range", "")))
    refusal = files.guard(path, {key.lower(): value for key, value in request.headers.items()}) if files.guard else None
    if refusal:
        return _send(request, refusal[0], b"", refusal[1])
    if waiting := files.statuses.get(path):
        return _send(request, waiting.pop(0), b"")
    if path in files.redirects:
        return _send(request, 302, b"", {"location": files.redirects[path]})
    if path not in files.contents:
        return _send(request, 404, b"no such file")
    content, asked = files.contents[path], _RANGE.fullmatch(request.headers.get("range", ""))
    begin = int(asked[1]) if asked and not files.ignores_ranges else 0
    if begin and begin >= len(content):
        return _send(request, 416, b"", {"content-range": f"bytes */{len(content)}"})
    headers = {"content-range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
    return _send(request, 206 if begin else 200, content[begin:], headers, files)


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    files: Files | None = None,
) -> None:
    request.send_response(status)
    for name, value in ({"content-length": str(len(body))} | dict(headers or {})).items():
        request.send_header(name, value)
    request.end_headers()
    cuts = files.cuts.get(request.path.partition("?")[0]) if files else None
    sent = body[: cuts.pop(0)] if cuts else body
    try:
        if hold := files.holds.pop(request.path, 0) if files else 0:
            assert files is not None
            request.wfile.write(sent[:hold])
            files.go.wait()
            request.wfile.write(sent[hold:])
        else:
            request.wfile.write(sent)
    except OSError:
        # The other side is gone.
        request.close_connection = True
        return
    if files:
        files.sent[request.path] += len(sent)
    if len(sent) < len(body):
        # Closes in the middle of the body.
        request.close_connection = True
