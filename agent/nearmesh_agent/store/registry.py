"""The OCI pull API over HTTPS, read by ranges on connections that stay open.

Blocking, on the standard library's client: TLS, hashing and writing then all happen outside Python's lock, so that a
pull at full speed leaves the event loop to inference.
"""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

from nearmesh.errors import DigestMismatch, InvalidInput, NotFound, Unreachable
from nearmesh.oci import MANIFEST_TYPE, MAX_MANIFEST_BYTES

log = logging.getLogger(__name__)

# Of a connection, and of each read: a registry that says nothing for so long is gone.
TIMEOUT_S = 10.0
# A registry may keep its blobs elsewhere, and send whoever asks there.
MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
# What is read at once while a whole answer is skipped.
_SKIP_BYTES = 256 * 1024


class HttpRegistry:
    """One repository: a model of the mesh's own registry, or of another one."""

    def __init__(self, url: str, name: str, context: ssl.SSLContext | None = None) -> None:
        """`url` is "https://host:port" (http without TLS), `name` the repository's. Raises InvalidInput."""
        self._base = _split(url)
        self._name = name
        self._context = context
        self._lock = threading.Lock()
        # By scheme and address: those that nobody uses, and all that are open.
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._open: set[http.client.HTTPConnection] = set()
        self._closed = False

    def manifest(self, reference: str) -> bytes:
        """Raises NotFound, Unreachable."""
        what = f"manifest {reference} of {self._name}"
        answer = self._get(f"/v2/{self._name}/manifests/{reference}", {"Accept": MANIFEST_TYPE}, what)
        try:
            return answer.read(MAX_MANIFEST_BYTES + 1)
        finally:
            answer.close()

    def open(self, digest: str, offset: int, size: int, wait_s: float) -> HttpReader:
        """Raises NotFound, Unreachable."""
        headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
        answer = self._get(f"/v2/{self._name}/blobs/{digest}", headers, f"blob {digest} of {self._name}")
        if answer.status == http.HTTPStatus.OK:
            # It does not know ranges, and sends everything.
            answer.skip(offset)
        total = answer.header("Content-Range").rpartition("/")[2]
        if total.isdecimal() and int(total) < offset + size:
            answer.close()
            raise DigestMismatch(
                f"{digest} of {self._name} has {total} bytes in the registry, fewer than the version says"
            )
        answer.left = size
        return answer

    def break_off(self) -> None:
        with self._lock:
            found = list(self._open)
            self._idle.clear()
        for connection in found:
            _shut_down(connection)

    def close(self) -> None:
        """Once nobody reads from it any more."""
        with self._lock:
            self._closed = True
            found = list(self._open)
        for connection in found:
            self.drop(connection)

    def _get(self, path: str, headers: Mapping[str, str], what: str) -> HttpReader:
        where = self._base
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._ask(where, path, headers, what)
            status = answer.status
            if status not in _REDIRECTS:
                break
            location = answer.header("Location")
            answer.close()
            where, path = _redirected(location, where, what)
        if status in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
            return answer
        answer.close()
        if status == http.HTTPStatus.NOT_FOUND:
            raise NotFound(f"the registry has no {what}")
        if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise DigestMismatch(f"{what} is shorter in the registry than the version says")
        raise Unreachable(f"the registry at {where[1]} answered {status} for {what}")

    def _ask(self, where: tuple[str, str], path: str, headers: Mapping[str, str], what: str) -> HttpReader:
        """Over a connection that was open, else over a new one: the other side may have closed the first meanwhile."""
        while True:
            connection, fresh = self._connection(where)
            try:
                connection.request("GET", path, headers=dict(headers))
                return HttpReader(self, where, connection, connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                self.drop(connection)
                if fresh or self._closed:
                    raise Unreachable(f"the registry at {where[1]} did not answer for {what}: {error!r}") from None

    def _connection(self, where: tuple[str, str]) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._closed:
                raise Unreachable("the transfer was broken off")
            if idle := self._idle.get(where):
                return idle.pop(), False
            if where[0] == "https":
                found: http.client.HTTPConnection = http.client.HTTPSConnection(
                    where[1], timeout=TIMEOUT_S, context=self._context or ssl.create_default_context()
                )
            else:
                found = http.client.HTTPConnection(where[1], timeout=TIMEOUT_S)
            self._open.add(found)
            return found, True

    def keep(self, where: tuple[str, str], connection: http.client.HTTPConnection) -> None:
        """The connection's answer was read to its end."""
        with self._lock:
            if not self._closed:
                self._idle.setdefault(where, []).append(connection)
                return
        self.drop(connection)

    def drop(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()


class HttpReader:
    """One answer's body."""

    def __init__(
        self,
        registry: HttpRegistry,
        where: tuple[str, str],
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
    ) -> None:
        self._registry = registry
        self._where = where
        self._connection = connection
        self._response = response
        self.status = response.status
        # What of the body is asked for.
        self.left = MAX_MANIFEST_BYTES + 1

    def header(self, name: str) -> str:
        return self._response.headers.get(name, "")

    def readinto(self, view: memoryview) -> int:
        try:
            count = self._response.readinto(view[: self.left])
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unreachable(f"the registry at {self._where[1]} broke off: {error!r}") from None
        self.left -= count
        return count

    def read(self, most_bytes: int) -> bytes:
        self.left = most_bytes
        data = bytearray()
        part = memoryview(bytearray(64 * 1024))
        while count := self.readinto(part):
            data += part[:count]
        return bytes(data)

    def skip(self, size: int) -> None:
        """Reads past what nobody asked for."""
        part = memoryview(bytearray(min(size, _SKIP_BYTES)))
        self.left = size
        while self.left and self.readinto(part):
            pass

    def close(self) -> None:
        if self._response.isclosed() and not self._response.will_close:
            self._registry.keep(self._where, self._connection)
        else:
            self._registry.drop(self._connection)


def _split(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.netloc:
        raise InvalidInput(f"registry {url!r} is not https://HOST:PORT")
    return parts.scheme, parts.netloc


def _redirected(location: str, where: tuple[str, str], what: str) -> tuple[tuple[str, str], str]:
    """Never from TLS to none."""
    parts = urlsplit(location)
    scheme, host = parts.scheme or where[0], parts.netloc or where[1]
    if (scheme != "https" and where[0] == "https") or scheme not in ("http", "https"):
        raise Unreachable(f"the registry sends whoever asks for {what} to {location[:200]!r}, which is not HTTPS")
    return (scheme, host), (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _shut_down(connection: http.client.HTTPConnection) -> None:
    """Wakes the thread that reads from it, which then closes it."""
    found = connection.sock
    if found is not None:
        try:
            # Not the TLS socket's own, which would have the reader go on without TLS.
            socket.socket.shutdown(found, socket.SHUT_RDWR)
        except OSError:
            pass
