"""Where a node pulls versions from: the control plane's own pull API and the stand-in that unit tests use alike."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from nearmesh_agent.store.store import ModelStore
from nearmesh_controlplane.catalog.layout import Layout
from nearmesh_controlplane.catalog.signing import Signing
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.web.registry_api import application

from nearmesh.errors import DigestMismatch, NotFound
from nearmesh.oci import Manifest, digest_bytes
from nearmesh.package import RoutePolicy
from tests.control_plane_state import state, stored
from tests.fake_registry import CONFIG, DIGEST, FILES, MANIFEST, FakeRegistry

WEIGHTS = digest_bytes(FILES["fp32.onnx"])


@dataclass(slots=True)
class Source:
    """A registry that holds one version, and how to damage one of its blobs."""

    client: httpx.AsyncClient
    put: Callable[[str, bytes | None], object]


@asynccontextmanager
async def stand_in(folder: Path) -> AsyncIterator[Source]:
    registry = FakeRegistry()

    def put(digest: str, data: bytes | None) -> None:
        registry.blobs.pop(digest) if data is None else registry.blobs.update({digest: data})

    async with httpx.AsyncClient(base_url="https://cp", transport=httpx.MockTransport(registry)) as client:
        yield Source(client, put)


@asynccontextmanager
async def pull_api(folder: Path) -> AsyncIterator[Source]:
    """The real application, without the socket."""
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
        async with httpx.AsyncClient(
            base_url="https://cp",
            transport=httpx.ASGITransport(app),
            headers={"Authorization": f"Bearer {token}"},
        ) as client:
            yield Source(client, put)


@pytest.fixture(params=[stand_in, pull_api], ids=["the stand-in", "the pull API"])
async def source(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Source]:
    async with request.param(tmp_path / "source") as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


async def test_a_version_arrives_as_it_was_published(source: Source, store: ModelStore) -> None:
    manifest, folder = await store.pull("m", DIGEST, source.client)
    assert manifest.to_bytes() == MANIFEST
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


@pytest.mark.parametrize(
    "data", [b"", FILES["fp32.onnx"][:-1], FILES["fp32.onnx"] + b"x", b"X" + FILES["fp32.onnx"][1:]]
)
async def test_p5_a_blob_that_rotted_is_noticed(source: Source, store: ModelStore, data: bytes) -> None:
    source.put(WEIGHTS, data)
    with pytest.raises(DigestMismatch):
        await store.pull("m", DIGEST, source.client)
    assert store.find(DIGEST) is None
    source.put(WEIGHTS, FILES["fp32.onnx"])
    await store.pull("m", DIGEST, source.client)


async def test_what_is_missing_is_not_found(source: Source, store: ModelStore) -> None:
    with pytest.raises(NotFound):
        await store.pull("m", "sha256:" + "0" * 64, source.client)
    source.put(WEIGHTS, None)
    with pytest.raises(NotFound):
        await store.pull("m", DIGEST, source.client)
