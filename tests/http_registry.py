"""Another registry, in memory: asked over HTTP, with a login where it wants one."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from nearmesh import signature
from nearmesh.oci import MANIFEST_TYPE, Descriptor, digest_bytes
from nearmesh.registries.client import RegistryClient
from nearmesh.registries.credentials import Login
from nearmesh.tls import new_key
from tests.fake_registry import CONFIG, DIGEST, FILES, MANIFEST

KEY, STRANGER = new_key(), new_key()
PEM = signature.public_pem(KEY)
SIGNED = signature.attached(KEY, "mesh/m", Descriptor(MANIFEST_TYPE, DIGEST, len(MANIFEST)))
LOGIN = Login("me", "secret")
BASIC = "Basic " + base64.b64encode(b"me:secret").decode()


@dataclass
class Registry:
    """A registry in memory, that may want a login: 'basic', or 'bearer' with a token server of its own."""

    wants: str = ""
    referrers: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ranges: bool = True
    sent_bytes: int = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append(f"{request.method} {path}")
        if path == "/token":
            right = request.headers.get("Authorization") == BASIC
            assert request.url.params["scope"] == "repository:m:pull,push"
            return httpx.Response(200, json={"token": "t"}) if right else httpx.Response(401)
        shown = request.headers.get("Authorization")
        if self.wants == "basic" and shown != BASIC:
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        if self.wants == "bearer" and shown != "Bearer t":
            challenge = 'Bearer realm="https://r/token",service="r",scope="repository:m:pull,push"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        return self._answer(request, path.removeprefix("/v2/m/"))

    def _answer(self, request: httpx.Request, path: str) -> httpx.Response:
        kind, _, name = path.partition("/")
        if request.method == "POST":
            return httpx.Response(202, headers={"Location": "/v2/m/blobs/uploads/7?state=x"})
        if request.method == "PUT" and kind == "blobs":
            assert request.headers["Content-Length"] and request.url.params["state"] == "x"
            digest, data = request.url.params["digest"], request.read()
            if digest_bytes(data) != digest:
                return httpx.Response(400, json={"errors": [{"code": "DIGEST_INVALID"}]})
            self.blobs[digest] = data
            return httpx.Response(201)
        if request.method == "PUT":
            self.manifests[name] = self.manifests[digest_bytes(request.read())] = request.read()
            return httpx.Response(201, headers={"OCI-Subject": "x"} if self.referrers else {})
        data = {"manifests": self.manifests, "blobs": self.blobs}[kind].get(name)
        if data is None:
            return httpx.Response(404)
        self.sent_bytes += len(data)
        if self.ranges and (wanted := request.headers.get("Range")):
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            self.sent_bytes += last + 1 - first - len(data)
            return httpx.Response(206, content=data[first : last + 1])
        return httpx.Response(200, content=data)


def filled(**more: str) -> Registry:
    found = Registry(**more)  # type: ignore[arg-type]
    found.blobs = {digest_bytes(data): data for data in (CONFIG, *FILES.values())} | dict(SIGNED.blobs)
    found.manifests = {"1": MANIFEST, DIGEST: MANIFEST, signature.tag(DIGEST): SIGNED.manifest}
    return found


def opened(registry: Callable[[httpx.Request], httpx.Response], login: Login | None = None) -> RegistryClient:
    return RegistryClient("https://r", "m", login=login, transport=httpx.MockTransport(registry))


def unseen(done: int, total: int) -> None:
    """Nobody watches."""
