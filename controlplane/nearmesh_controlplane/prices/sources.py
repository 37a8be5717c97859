"""Where a feed's bytes come from: a file or a URL. Both say when there is nothing new; size and time are bounded."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from nearmesh.oci import digest_bytes
from nearmesh_controlplane.prices.parser import MAX_BYTES, BadFeed

TIMEOUT = httpx.Timeout(10.0)
# Of the whole answer: a server that sends a byte now and then must not hold the feed for ever.
FETCH_LIMIT_S = 30.0
MAX_REDIRECTS = 5


class Source(Protocol):
    """Somewhere that prices are read from."""

    @property
    def name(self) -> str:
        """For people; without what may be secret in it."""
        ...

    @property
    def restless(self) -> bool:
        """It is being written: worth another look soon."""
        ...

    async def fetch(self) -> bytes | None:
        """What it says now; None when that is what it said last time. Raises BadFeed."""
        ...


def open_source(feed: str) -> Source:
    """The source that mesh.toml names."""
    return UrlSource(feed) if "://" in feed else FileSource(Path(feed))


class FileSource:
    """A file. One that was moved into its place is taken at once; one that is written in place, once it has come to
    rest between two looks: until then it may be half of a price list."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # None: never looked at; empty: it was not there.
        self._seen: tuple[int, ...] | None = None
        self._taken: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return str(self._path)

    @property
    def restless(self) -> bool:
        return self._seen != self._taken

    async def fetch(self) -> bytes | None:
        return await asyncio.to_thread(self.read)

    def read(self) -> bytes | None:
        """As `fetch`, for a thread that may wait for the disk."""
        try:
            return self._read()
        except OSError as error:
            self._seen = self._taken = ()
            raise BadFeed(f"it cannot be read: {error.strerror or error}") from None
        except BadFeed:
            self._seen = self._taken = ()
            raise

    def _read(self) -> bytes | None:
        now = _mark(self._path.stat())
        before, self._seen = self._seen, now
        at_rest = before is None or before == now or (before and before[:2] != now[:2])
        if now == self._taken or not at_rest:
            return None
        # Without waiting, should it have become a pipe meanwhile.
        with os.fdopen(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            data = file.read(MAX_BYTES + 1)
            after = _mark(os.fstat(file.fileno()))
        if after != now:
            self._seen = after
            return None
        self._taken = now
        return data


def _mark(found: os.stat_result) -> tuple[int, ...]:
    """Device and inode, then what changes when the file is written."""
    if not stat.S_ISREG(found.st_mode):
        raise BadFeed("it is not a file")
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class UrlSource:
    """An HTTP server, asked whether it has something new by what it said of its last answer."""

    restless = False

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._url = url
        self._transport = transport
        self._forget()

    @property
    def name(self) -> str:
        """Without a password, and without the query, which may hold a token."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def _forget(self) -> None:
        self._known: dict[str, str] = {}
        self._digest = ""

    async def fetch(self) -> bytes | None:
        try:
            async with asyncio.timeout(FETCH_LIMIT_S):
                data = await self._get()
        except TimeoutError:
            self._forget()
            raise BadFeed(f"there was no whole answer within {FETCH_LIMIT_S:.0f} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._forget()
            raise BadFeed(f"it cannot be fetched: {str(error) or type(error).__name__}") from None
        except BadFeed:
            self._forget()
            raise
        if data is None or digest_bytes(data) == self._digest:
            return None
        self._digest = digest_bytes(data)
        return data

    async def _get(self) -> bytes | None:
        async with httpx.AsyncClient(timeout=TIMEOUT, transport=self._transport, follow_redirects=False) as client:
            # Packed, a small answer could unfold into any size.
            headers = {"accept": "text/csv, application/json", "accept-encoding": "identity", **self._known}
            request = client.build_request("GET", self._url, headers=headers)
            for _ in range(MAX_REDIRECTS + 1):
                response = await client.send(request, stream=True)
                try:
                    if response.next_request is None:
                        return await self._body(response)
                    request = _same_scheme(request, response.next_request)
                finally:
                    await response.aclose()
        raise BadFeed(f"it redirects more than {MAX_REDIRECTS} times")

    async def _body(self, response: httpx.Response) -> bytes | None:
        if response.status_code == httpx.codes.NOT_MODIFIED and self._known:
            return None
        if response.status_code != httpx.codes.OK:
            raise BadFeed(f"it answers {response.status_code} {response.reason_phrase}".rstrip())
        if (coding := response.headers.get("content-encoding", "identity")) != "identity":
            raise BadFeed(f"it answers in content-encoding {coding!r}, which was not asked for")
        data = bytearray()
        async for part in response.aiter_raw():
            data += part
            if len(data) > MAX_BYTES:
                raise BadFeed(f"it has more than {MAX_BYTES} bytes")
        names = (("etag", "if-none-match"), ("last-modified", "if-modified-since"))
        said_of = {asked: response.headers.get(said, "") for said, asked in names}
        self._known = {asked: value for asked, value in said_of.items() if value and value.isascii()}
        return bytes(data)


def _same_scheme(before: httpx.Request, after: httpx.Request) -> httpx.Request:
    """From https to http, whoever stands between could make the prices."""
    if after.url.scheme != before.url.scheme:
        raise BadFeed(f"it redirects from {before.url.scheme} to {after.url.scheme}, which is not followed")
    return after
