"""One name in one registry, over the OCI distribution API: manifests, blobs, and uploads of both.

Needs httpx (extra `registries`). Bytes are proven against their digests as they come; files are never held in memory.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from nearmesh.errors import DigestMismatch, MeshError, NotFound, PermissionDenied, Unauthenticated, Unreachable
from nearmesh.oci import INDEX_TYPE, MANIFEST_TYPE, MAX_MANIFEST_BYTES, Descriptor, digest_bytes
from nearmesh.registries.credentials import Login

# A registry that has taken a file of several gigabytes may hash it before it answers.
TIMEOUT = httpx.Timeout(30.0, read=300.0, write=60.0)
PART_BYTES = 1024 * 1024
# Weights do not shrink much; what comes packed all the same is unpacked.
AS_IT_IS = {"Accept-Encoding": "identity"}
NO_HEADERS: Mapping[str, str] = {}

_PARAMETER = re.compile(r'(\w+)="([^"]*)"')

# Opens the bytes of a blob anew.
Opened = Callable[[], Iterator[bytes]]


class RegistryClient:
    """Enter it with `with`. Every method raises Unreachable, Unauthenticated, PermissionDenied, and what it names."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        login: Login | None = None,
        token: str = "",
        verify: ssl.SSLContext | bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`token` is a bearer token that is shown from the start; a login is shown when it is asked for."""
        self._url, self._name, self._login = url, name, login
        self._shown = f"Bearer {token}" if token else ""
        self._http = httpx.Client(verify=verify, timeout=TIMEOUT, follow_redirects=True, transport=transport)

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def __str__(self) -> str:
        return f"{urlsplit(self._url).netloc}/{self._name}"

    def manifest(self, reference: str) -> bytes:
        """By tag or digest. Raises NotFound, DigestMismatch."""
        accept = {"Accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}"}
        with self._answer("GET", f"manifests/{reference}", headers=accept) as answer:
            data = b"".join(self._pieces(answer, MAX_MANIFEST_BYTES))
        promised = answer.headers.get("Docker-Content-Digest") or reference
        for digest in {promised, reference}:
            if digest.startswith("sha256:") and digest_bytes(data) != digest:
                raise DigestMismatch(f"{self} gave the manifest {digest_bytes(data)} for {digest}")
        return data

    def pieces(self, blob: Descriptor) -> Iterator[bytes]:
        """A blob's bytes. Raises NotFound, and at the end DigestMismatch."""
        sha, size = hashlib.sha256(), 0
        with self._answer("GET", f"blobs/{blob.digest}") as answer:
            for piece in self._pieces(answer, blob.size_bytes):
                sha.update(piece)
                size += len(piece)
                yield piece
        got = "sha256:" + sha.hexdigest()
        if (got, size) != (blob.digest, blob.size_bytes):
            raise DigestMismatch(
                f"{blob.title or 'a blob'} is {blob.digest} ({blob.size_bytes} bytes), {self} gave {got} ({size})"
            )

    def stretch(self, blob: Descriptor, offset: int, size_bytes: int) -> Iterator[bytes]:
        """A part of a blob, not proven. Raises NotFound, DigestMismatch for more than there should be."""
        wanted = {"Range": f"bytes={offset}-{offset + size_bytes - 1}"}
        with self._answer("GET", f"blobs/{blob.digest}", headers=wanted) as answer:
            if answer.status_code == 206:
                yield from self._pieces(answer, size_bytes)
                return
            # A registry without ranges sends everything.
            at, end = 0, offset + size_bytes
            for piece in self._pieces(answer, blob.size_bytes):
                yield piece[max(offset - at, 0) : max(end - at, 0)]
                at += len(piece)
                if at >= end:
                    return

    def place(self, digest: str) -> tuple[str, dict[str, str]]:
        """A blob's address and what the registry wants to be shown there, for whoever reads it in parts."""
        url = urljoin(f"{self._url}/v2/{self._name}/", f"blobs/{digest}")
        return url, {"Authorization": self._shown} if self._shown else {}

    def has(self, digest: str) -> bool:
        """Whether the blob is there."""
        try:
            with self._answer("HEAD", f"blobs/{digest}"):
                return True
        except NotFound:
            return False

    def upload(self, blob: Descriptor, opened: Opened) -> None:
        """Puts a blob there. Raises DigestMismatch, when the registry refuses the bytes as others."""
        with self._answer("POST", "blobs/uploads/") as answer:
            location = answer.headers.get("Location", "")
        try:
            target = httpx.URL(urljoin(str(answer.url), location)).copy_merge_params({"digest": blob.digest})
        except (httpx.InvalidURL, ValueError):
            raise Unreachable(f"registry {self} has {blob.title or blob.digest} sent to {location[:200]!r}") from None
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size_bytes)}
        with self._answer("PUT", str(target), headers=headers, opened=opened) as answer:
            got = answer.headers.get("Docker-Content-Digest", blob.digest)
        if got != blob.digest:
            raise DigestMismatch(f"{self} stored {blob.title or blob.digest} as {got}")

    def put_manifest(self, reference: str, data: bytes, media_type: str = MANIFEST_TYPE) -> bool:
        """Under a tag or its digest. Whether the registry keeps track of what it refers to."""
        headers = {"Content-Type": media_type}
        with self._answer("PUT", f"manifests/{reference}", headers=headers, content=data) as answer:
            got = answer.headers.get("Docker-Content-Digest", digest_bytes(data))
            if got != digest_bytes(data):
                raise DigestMismatch(f"{self} stored the manifest {digest_bytes(data)} as {got}")
            return "OCI-Subject" in answer.headers

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        content: bytes | None = None,
        opened: Opened | None = None,
    ) -> Iterator[httpx.Response]:
        """An answer that is one of success; its body is still to come."""
        url = urljoin(f"{self._url}/v2/{self._name}/", path)
        answer = self._asked(method, url, headers, opened() if opened else content)
        if answer.status_code == 401 and self._log_in(answer):
            answer.close()
            answer = self._asked(method, url, headers, opened() if opened else content)
        try:
            if not answer.is_success:
                raise self._refusal(answer, path)
            yield answer
        finally:
            answer.close()

    def _asked(self, method: str, url: str, headers: Mapping[str, str], content: Any) -> httpx.Response:
        # A login is for its own registry; uploads may go elsewhere.
        shown = {"Authorization": self._shown} if self._shown and _same_place(url, self._url) else {}
        try:
            request = self._http.build_request(method, url, headers={**AS_IT_IS, **headers, **shown}, content=content)
            return self._http.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"registry {self}: {error or type(error).__name__}") from None

    def _log_in(self, answer: httpx.Response) -> bool:
        """Finds what the registry wants to be shown; whether that is something new."""
        challenge = answer.headers.get("WWW-Authenticate", "")
        scheme, _, rest = challenge.partition(" ")
        before = self._shown
        if scheme.lower() == "bearer":
            self._shown = self._token(dict(_PARAMETER.findall(rest)))
        elif self._login:
            self._shown = self._login.header
        return self._shown != before

    def _token(self, asked: dict[str, str]) -> str:
        """A token of the server that the registry names."""
        named = asked.get("realm", "")
        try:
            realm = urljoin(self._url, named)
        except ValueError:
            raise Unreachable(f"registry {self} wants a token from {named[:200]!r}, which is no address") from None
        if urlsplit(realm).scheme != "https" and urlsplit(self._url).scheme == "https":
            raise Unauthenticated(f"registry {self} wants a token from {realm}, which is not https")
        shown = {"Authorization": self._login.header} if self._login else {}
        parameters = {key: text for key, text in asked.items() if key in ("service", "scope")}
        try:
            answer = self._http.get(realm, params=parameters, headers=shown)
            found = answer.json() if answer.is_success else {}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise Unreachable(f"{realm}, which gives tokens for {self}: {error!r}") from None
        token = (found.get("token") or found.get("access_token") or "") if isinstance(found, dict) else None
        if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
            raise Unreachable(f"{realm}, which gives tokens for {self}, answers with something that is none")
        return f"Bearer {token}" if token else ""

    def _refusal(self, answer: httpx.Response, path: str) -> MeshError:
        said = f"registry {self} answered {answer.status_code} for {path.partition('?')[0]}: {_reason(answer)}"
        if answer.status_code == 401:
            return Unauthenticated(f"{said}; `docker login {urlsplit(self._url).netloc}` or its like lets you in")
        if answer.status_code == 403:
            return PermissionDenied(said)
        if answer.status_code == 404:
            return NotFound(said)
        return DigestMismatch(said) if "DIGEST_INVALID" in said else Unreachable(said)

    def _pieces(self, answer: httpx.Response, most: int) -> Iterator[bytes]:
        """The body. Raises DigestMismatch for more than there should be."""
        size = 0
        try:
            for piece in answer.iter_bytes(PART_BYTES):
                size += len(piece)
                if size > most:
                    raise DigestMismatch(f"{self} sends more than the {most} bytes that there should be")
                yield piece
        except httpx.HTTPError as error:
            raise Unreachable(f"registry {self} broke off: {error!r}") from None


def _same_place(url: str, other: str) -> bool:
    return urlsplit(url)[:2] == urlsplit(other)[:2]


def _reason(answer: httpx.Response) -> str:
    """What the registry says; a little of it."""
    try:
        text = next(answer.iter_bytes(2000), b"").decode("utf-8", "replace")
    except httpx.HTTPError:
        text = ""
    return " ".join(text.split())[:300] or answer.reason_phrase
