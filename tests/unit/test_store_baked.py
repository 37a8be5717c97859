"""Weights that came with the machine are used where they lie; signatures are asked for whatever brought a version."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_agent.config import StoreConfig
from nearmesh_agent.store import planner as planners
from nearmesh_agent.store.store import ModelStore

from nearmesh import signature
from nearmesh.errors import SignatureError, Unreachable
from nearmesh.oci import MANIFEST_TYPE, Descriptor, digest_bytes
from nearmesh.tls import new_key
from tests.fake_registry import CONFIG, DIGEST, FILES, MANIFEST, FakeRegistry

KEY = new_key()
KEYS = [signature.public_pem(KEY)]
SIGNED = signature.attached(KEY, "mesh/m", Descriptor(MANIFEST_TYPE, DIGEST, len(MANIFEST)))
TAG = signature.tag(DIGEST)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planners, "BACKOFF_S", (0.0, 0.0))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ModelStore]:
    found = ModelStore(tmp_path / "store", StoreConfig(baked=(tmp_path / "baked",)))
    yield found
    found.close()


def signed_registry() -> FakeRegistry:
    registry = FakeRegistry()
    registry.manifests[TAG] = SIGNED.manifest
    registry.blobs |= SIGNED.blobs
    return registry


def away() -> FakeRegistry:
    registry = FakeRegistry()
    registry.error = Unreachable("away")
    return registry


def bake(folder: Path, *, layout: bool, whole: bool = True) -> None:
    """As a `COPY` of an image does it."""
    blobs = folder / "blobs" / "sha256" if layout else folder
    blobs.mkdir(parents=True)
    for data in (MANIFEST, CONFIG, *FILES.values(), SIGNED.manifest, *SIGNED.blobs.values()):
        if whole or data != FILES["fp32.onnx"]:
            (blobs / digest_bytes(data).removeprefix("sha256:")).write_bytes(data)
    if layout:
        entries = [
            {"digest": digest_bytes(data), "annotations": {"org.opencontainers.image.ref.name": name}}
            for name, data in (("1", MANIFEST), (TAG, SIGNED.manifest))
        ]
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))


@pytest.mark.parametrize("layout", [False, True], ids=["blobs", "layout"])
async def test_weights_of_the_image_are_not_pulled_and_not_copied(
    store: ModelStore, tmp_path: Path, layout: bool
) -> None:
    bake(tmp_path / "baked", layout=layout)
    _, folder = await store.pull("m", DIGEST, away())
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert (folder / "fp32.onnx").resolve().is_relative_to(tmp_path / "baked")
    assert list((tmp_path / "store" / "blobs").iterdir()) == []
    assert (await store.held(DIGEST)) is not None
    # When nobody wants it, the image keeps what is the image's.
    await store.keep_only(list)
    assert store.find(DIGEST) is None and list((tmp_path / "baked").rglob("*"))


async def test_what_the_image_lacks_is_pulled(store: ModelStore, tmp_path: Path) -> None:
    bake(tmp_path / "baked", layout=False, whole=False)
    registry = FakeRegistry()
    _, folder = await store.pull("m", DIGEST, registry)
    assert [digest for digest, _, _ in registry.reads] == [registry.weights]
    assert (folder / "fp32.onnx").read_bytes() == FILES["fp32.onnx"]


async def test_p5_what_rotted_in_the_image_is_pulled_instead(
    store: ModelStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bake(tmp_path / "baked", layout=False)
    registry = FakeRegistry()
    rotten = tmp_path / "baked" / registry.weights.removeprefix("sha256:")
    rotten.write_bytes(b"X" + rotten.read_bytes()[1:])
    _, folder = await store.pull("m", DIGEST, registry)
    assert (folder / "fp32.onnx").read_bytes() == FILES["fp32.onnx"]
    assert "is not what its name says" in caplog.text


async def test_p5_a_node_with_keys_loads_what_they_signed_and_remembers_the_proof(
    store: ModelStore, tmp_path: Path
) -> None:
    await store.pull("m", DIGEST, signed_registry(), keys_pem=KEYS)
    # Also after a restart without the registry.
    restarted = ModelStore(tmp_path / "store")
    assert (await restarted.pull("m", DIGEST, away(), keys_pem=KEYS))[0].model == "m"
    # Other keys do not believe it.
    others = [signature.public_pem(new_key())]
    assert await restarted.held(DIGEST, others) is None
    with pytest.raises(SignatureError, match="not by any of the 1 keys"):
        await restarted.pull("m", DIGEST, signed_registry(), keys_pem=others)
    restarted.close()


async def test_p5_a_version_that_nobody_signed_is_not_loaded(store: ModelStore) -> None:
    with pytest.raises(SignatureError, match="no signature in the registry"):
        await store.pull("m", DIGEST, FakeRegistry(), keys_pem=KEYS)
    assert store.find(DIGEST) is None
    # Pulled before there were keys, it is not loaded either.
    await store.pull("m", DIGEST, FakeRegistry())
    with pytest.raises(SignatureError):
        await store.pull("m", DIGEST, FakeRegistry(), keys_pem=KEYS)
    assert (await store.pull("m", DIGEST, signed_registry(), keys_pem=KEYS))[0].model == "m"


def _another_payload(registry: FakeRegistry) -> None:
    """A signature that holds, of another version."""
    other = signature.attached(KEY, "mesh/m", Descriptor(MANIFEST_TYPE, digest_bytes(b"other"), 5))
    registry.manifests[TAG] = other.manifest
    registry.blobs |= other.blobs


def _damaged(registry: FakeRegistry) -> None:
    payload = next(data for data in SIGNED.blobs.values() if b"docker-manifest-digest" in data)
    registry.blobs[digest_bytes(payload)] = payload.replace(b"mesh/m", b"mesh/x")


TAMPERED = {
    "of another version": _another_payload,
    "a damaged payload": _damaged,
    "no manifest of signatures": lambda registry: registry.manifests.update({TAG: b"{}"}),
}


@pytest.mark.parametrize("how", TAMPERED)
async def test_p5_a_signature_that_was_tampered_with_is_refused(store: ModelStore, how: str) -> None:
    registry = signed_registry()
    TAMPERED[how](registry)
    with pytest.raises(SignatureError):
        await store.pull("m", DIGEST, registry, keys_pem=KEYS)
    assert store.find(DIGEST) is None


async def test_a_layout_in_the_image_brings_its_signatures(store: ModelStore, tmp_path: Path) -> None:
    bake(tmp_path / "baked", layout=True)
    await store.pull("m", DIGEST, away(), keys_pem=KEYS)
