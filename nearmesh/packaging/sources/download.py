"""One file over HTTP, into a draft that a later try goes on with. Needs `httpx` (extra `build`)."""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from nearmesh.backoff import Backoff
from nearmesh.errors import PackageError, Unreachable
from nearmesh.package.source import is_safe_url

if TYPE_CHECKING:
    import httpx

# Of a file's name, the bytes that are there, and all of them, if the other side told.
OnProgress = Callable[[str, int, int | None], None]

# Tries in a row that brought nothing new.
MOST_TRIES = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 8.0
_CONNECT_S, _SILENCE_S = 10.0, 30.0
_PIECE_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file on some server."""

    # As people know it.
    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    # By status, what to do about it.
    remedies: Mapping[int, str] = field(default_factory=dict)


class _Again(Exception):
    """The try failed in a way that may pass."""


def quiet(name: str, done: int, total: int | None) -> None:
    """Progress that nobody watches."""


def bring(remote: Remote, draft: Path, on_progress: OnProgress = quiet) -> None:
    """Fills `draft` to the file's end, going on after what it has.

    Raises PackageError, and Unreachable after some tries.
    """
    backoff, failed, had = Backoff(_FIRST_WAIT_S, _LONGEST_WAIT_S), 0, draft.stat().st_size
    with web_client() as client:
        while True:
            try:
                return _go_on(client, remote, draft, on_progress)
            except _Again as error:
                has = draft.stat().st_size
                failed = 1 if has > had else failed + 1
                # The most so far: a server that begins anew each time brings nothing new.
                had = max(had, has)
                if failed >= MOST_TRIES:
                    raise Unreachable(f"{remote.name}: {error}; {_what_now(has)}") from None
                time.sleep(backoff.next_s())


def needs_httpx() -> None:
    """Raises PackageError without it."""
    if importlib.util.find_spec("httpx") is None:
        raise PackageError("fetching weights needs httpx: pip install 'nearmesh[build]'")


def web_client() -> httpx.Client:
    """Follows redirects, but never from HTTPS to HTTP. Raises PackageError without httpx."""
    needs_httpx()
    import httpx

    def refuse_plain(request: httpx.Request) -> None:
        if not is_safe_url(str(request.url)):
            raise PackageError(f"{request.url}: a server leads there, and it is not HTTPS")

    return httpx.Client(
        follow_redirects=True,
        timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
        event_hooks={"request": [refuse_plain]},
    )


def _go_on(client: httpx.Client, remote: Remote, draft: Path, on_progress: OnProgress) -> None:
    import httpx

    begin = draft.stat().st_size
    # Packed on the way, a range would be one of the packed bytes.
    headers = dict(remote.headers) | {"accept-encoding": "identity"}
    if begin:
        headers["range"] = f"bytes={begin}-"
    try:
        with client.stream("GET", remote.url, headers=headers) as response, draft.open("r+b") as file:
            if response.status_code == 416:
                # Nothing lies beyond: the draft is whole, or was never of this file, which its digest tells.
                return
            check_status(remote, response)
            begin, total = _place(response, begin)
            file.truncate(begin)
            file.seek(begin)
            _write(response, file, lambda done: on_progress(remote.name, done, total))
    except httpx.TransportError as error:
        raise _Again(str(error) or type(error).__name__) from None
    except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as error:
        raise PackageError(f"{remote.name}: {error}") from None


def check_status(remote: Remote, response: httpx.Response) -> None:
    """Raises PackageError for what another try would not mend, else _Again."""
    status = response.status_code
    if status in (200, 206):
        return
    said = f"{response.url.host} answers {status} {response.reason_phrase}".rstrip()
    if status in (408, 425, 429) or status >= 500:
        raise _Again(said)
    remedy = remote.remedies.get(status) or ("check the address" if status in (404, 410) else "")
    raise PackageError(f"{remote.name}: {said}" + (f"; {remedy}" if remedy else ""))


def _place(response: httpx.Response, asked: int) -> tuple[int, int | None]:
    """Where in the file the answer begins, and how long the file is."""
    if response.status_code == 200:
        length = response.headers.get("content-length", "")
        return 0, int(length) if length.isdecimal() else None
    found = _RANGE.fullmatch(response.headers.get("content-range", ""))
    if found is None or int(found[1]) != asked:
        raise PackageError(f"{response.url}: asked for bytes from {asked} on, the server gave others")
    return asked, int(found[2]) if found[2].isdecimal() else None


def _write(response: httpx.Response, file: IO[bytes], told: Callable[[int], None]) -> None:
    told(file.tell())
    for piece in response.iter_bytes(_PIECE_BYTES):
        file.write(piece)
        told(file.tell())


def _what_now(has_bytes: int) -> str:
    kept = f"the {has_bytes} bytes that came are kept, and " if has_bytes else ""
    return f"check the network and try again{': ' if kept else ''}{kept}{'the next try goes on there' if kept else ''}"
