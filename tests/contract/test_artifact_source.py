"""Where a node pulls versions from: the control plane's own pull API and the stand-in that unit tests use alike."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from nearmesh_agent.store import planner as planners
from nearmesh_agent.store.registry import HttpRegistry
from nearmesh_agent.store.source import Registry, fill, read_all
from nearmesh_agent.store.store import ModelStore
from nearmesh_controlplane.catalog.signing import Signing
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.web.registry_api import application
from starlette.types import ASGIApp, Receive, Scope, Send

from nearmesh.errors import DigestMismatch, NotFound
from nearmesh.oci import Manifest, digest_bytes
from nearmesh.oci_layout import Layout
from nearmesh.package import RoutePolicy
from tests.control_plane_state import state, stored
from tests.fake_registry import CONFIG, DIGEST, FILES, MANIFEST, FakeRegistry

WEIGHTS = digest_bytes(FILES["fp32.onnx"])


@dataclass(slots=True)
class Source:
    """A registry that holds one version, and how to damage one of its blobs."""

    registry: Registry
    put: Callable[[str, bytes | None], object]


@asynccontextmanager
async def stand_in(folder: Path) -> AsyncIterator[Source]:
    registry = FakeRegistry()

    def put(digest: str, data: bytes | None) -> None:
        registry.blobs.pop(digest) if data is None else registry.blobs.update({digest: data})

    yield Source(registry, put)


@asynccontextmanager
async def pull_api(folder: Path) -> AsyncIterator[Source]:
    """The real application, over a socket without TLS."""
    authority, layout = Authority.open("mesh", folder / "authority"), Layout(folder / "oci")
    manifest = Manifest.from_bytes(MANIFEST)
    for blob in manifest.blobs:
        writer = layout.writer(blob)
        writer.write(next(data for data in (CONFIG, *FILES.values()) if digest_bytes(data) == blob.digest))
        writer.commit()
    layout.add_manifest(MANIFEST, DIGEST, "m:1")

    def put(digest: str, data: bytes | None) -> None:
        path = layout.path(digest)
        path.unlink() if data is None else path.write_bytes(data)

    async with state(folder) as mesh:
        await mesh.catalog.add(manifest, DIGEST, RoutePolicy(), stored)
        signing = Signing("mesh", authority.model_key, layout)
        app = application(layout, mesh.catalog, signing, mesh="mesh", verifier=authority.verifier(), removed=frozenset)
        token = authority.issuer.access("node", "client", now_s=time.time(), lifetime_s=60)
        async with served(_with_token(app, token)) as url:
            registry = HttpRegistry(url, "m")
            try:
                yield Source(registry, put)
            finally:
                registry.close()


def _with_token(app: ASGIApp, token: str) -> ASGIApp:
    """Nodes show a certificate, for which there would have to be TLS here."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        shown = [*scope.get("headers", ()), (b"authorization", f"Bearer {token}".encode())]
        await app({**scope, "headers": shown}, receive, send)

    return call


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.capture_signals = _Nothing  # type: ignore[method-assign]
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_exc: object) -> None: ...


@pytest.fixture(params=[stand_in, pull_api], ids=["the stand-in", "the pull API"])
async def source(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Source]:
    async with request.param(tmp_path / "source") as found:
        yield found


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelStore]:
    monkeypatch.setattr(planners, "BACKOFF_S", (0.0, 0.0))
    found = ModelStore(tmp_path / "store")
    yield found
    found.close()


async def test_a_version_arrives_as_it_was_published(source: Source, store: ModelStore) -> None:
    manifest, folder = await store.pull("m", DIGEST, source.registry)
    assert manifest.to_bytes() == MANIFEST
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


async def test_a_range_is_what_was_asked_for(source: Source) -> None:
    def ranges() -> list[bytes]:
        found = []
        for offset, size in ((0, 10), (5, 100), (6990, 10)):
            part = bytearray(size + 50)
            reader = source.registry.open(WEIGHTS, offset, size, 0.0)
            try:
                found.append(bytes(part[: fill(reader, memoryview(part))]))
            finally:
                reader.close()
        return found

    weights = FILES["fp32.onnx"]
    assert await asyncio.to_thread(ranges) == [weights[:10], weights[5:105], weights[6990:]]
    assert await asyncio.to_thread(read_all, source.registry, WEIGHTS, 7000) == weights


@pytest.mark.parametrize("data", [b"", FILES["fp32.onnx"][:-1], b"X" + FILES["fp32.onnx"][1:]])
async def test_p5_a_blob_that_rotted_is_noticed(source: Source, store: ModelStore, data: bytes) -> None:
    source.put(WEIGHTS, data)
    with pytest.raises(DigestMismatch):
        await store.pull("m", DIGEST, source.registry)
    assert store.find(DIGEST) is None
    source.put(WEIGHTS, FILES["fp32.onnx"])
    await store.pull("m", DIGEST, source.registry)


async def test_what_is_missing_is_not_found(source: Source, store: ModelStore) -> None:
    with pytest.raises(NotFound):
        await store.pull("m", "sha256:" + "0" * 64, source.registry)
    source.put(WEIGHTS, None)
    with pytest.raises(NotFound):
        await store.pull("m", DIGEST, source.registry)
