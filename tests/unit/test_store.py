"""The node's model store against a registry that lies, breaks off or is not there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from nearmesh_agent.store import store as stores
from nearmesh_agent.store.store import ModelStore

from nearmesh.errors import DigestMismatch, NotFound, PackageError, Unreachable
from nearmesh.oci import digest_bytes
from tests.fake_registry import DIGEST, FILES, MANIFEST, FakeRegistry


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
async def client(registry: FakeRegistry) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url="https://cp", transport=httpx.MockTransport(registry)) as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path)


def left_over(tmp_path: Path) -> list[Path]:
    return list(tmp_path.rglob(".incoming-*"))


async def test_a_pulled_version_is_a_folder_with_its_files(
    store: ModelStore, client: httpx.AsyncClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    assert store.find(DIGEST) is None
    manifest, folder = await store.pull("m", DIGEST, client)
    assert (manifest.model, manifest.version) == ("m", "1")
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert left_over(tmp_path) == []
    # The next start needs no registry.
    registry.status = 500
    assert ModelStore(tmp_path).find(DIGEST) == (manifest, folder)
    assert await store.pull("m", DIGEST, client) == (manifest, folder)


def change(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


LIES: dict[str, tuple[Callable[[bytes], bytes], type[Exception]]] = {
    "changed": (change, DigestMismatch),
    "shorter": (lambda data: data[:-1], DigestMismatch),
    "longer": (lambda data: data + b"x", DigestMismatch),
    "nothing": (lambda data: b"", DigestMismatch),
}


@pytest.mark.parametrize("lie", LIES)
async def test_p5_a_blob_that_is_not_what_its_digest_says_is_not_kept(
    store: ModelStore, client: httpx.AsyncClient, registry: FakeRegistry, tmp_path: Path, lie: str
) -> None:
    sound = registry.blobs[registry.weights]
    make, error = LIES[lie]
    registry.blobs[registry.weights] = make(sound)
    with pytest.raises(error, match=r"fp32\.onnx"):
        await store.pull("m", DIGEST, client)
    assert store.find(DIGEST) is None
    assert left_over(tmp_path) == []
    assert not (tmp_path / "blobs" / registry.weights.removeprefix("sha256:")).exists()
    # What was right is not fetched again.
    registry.blobs[registry.weights] = sound
    registry.asked.clear()
    await store.pull("m", DIGEST, client)
    assert f"/v2/m/blobs/{digest_bytes(FILES['model.toml'])}" not in registry.asked


async def test_p5_a_manifest_that_is_not_what_its_digest_says_is_refused(
    store: ModelStore, client: httpx.AsyncClient, registry: FakeRegistry
) -> None:
    registry.manifest = MANIFEST + b" "
    with pytest.raises(DigestMismatch, match="wanted " + DIGEST):
        await store.pull("m", DIGEST, client)


async def test_a_manifest_that_is_none_is_refused(store: ModelStore) -> None:
    body = b'{"not": "a manifest"}'
    answer = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
    async with httpx.AsyncClient(base_url="https://cp", transport=answer) as client:
        with pytest.raises(PackageError):
            await store.pull("m", digest_bytes(body), client)


@pytest.mark.parametrize(("status", "error"), [(404, NotFound), (403, Unreachable), (500, Unreachable)])
async def test_a_registry_that_does_not_answer_with_it(
    store: ModelStore, client: httpx.AsyncClient, registry: FakeRegistry, status: int, error: type[Exception]
) -> None:
    registry.status = status
    with pytest.raises(error):
        await store.pull("m", DIGEST, client)
    registry.status = 200
    del registry.blobs[registry.weights]
    with pytest.raises(NotFound, match=registry.weights):
        await store.pull("m", DIGEST, client)


async def test_a_connection_that_breaks_is_unreachable(store: ModelStore, tmp_path: Path) -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        if "manifests" in request.url.path:
            return httpx.Response(200, content=MANIFEST)

        async def half() -> AsyncIterator[bytes]:
            yield b"w"
            raise httpx.ReadError("connection reset")

        return httpx.Response(200, content=half())

    async with httpx.AsyncClient(base_url="https://cp", transport=httpx.MockTransport(broken)) as client:
        with pytest.raises(Unreachable, match="broke off"):
            await store.pull("m", DIGEST, client)
    assert left_over(tmp_path) == []


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a changed byte": lambda folder: (folder / "fp32.onnx").write_bytes(change(FILES["fp32.onnx"])),
    "a short file": lambda folder: os.truncate(folder / "fp32.onnx", 3),
    "a missing file": lambda folder: (folder / "fp32.onnx").unlink(),
    "a folder instead of a file": lambda folder: ((folder / "fp32.onnx").unlink(), (folder / "fp32.onnx").mkdir()),
    "a changed manifest": lambda folder: (folder / "manifest.json").write_bytes(MANIFEST + b" "),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_p5_what_rotted_on_disk_is_noticed_and_pulled_again(
    store: ModelStore, client: httpx.AsyncClient, damage: str
) -> None:
    _, folder = await store.pull("m", DIGEST, client)
    DAMAGES[damage](folder)
    assert store.find(DIGEST) is None
    _, folder = await store.pull("m", DIGEST, client)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert store.find(DIGEST) is not None


async def test_two_versions_share_equal_files_and_not_their_damage_unnoticed(
    store: ModelStore, client: httpx.AsyncClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    """Files are hard links to blobs, so damage to one version's file may be damage to another's."""
    second = MANIFEST.replace(b'"1"', b'"2"')
    other = digest_bytes(second)
    _, folder = await store.pull("m", DIGEST, client)

    def both(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(other):
            return httpx.Response(200, content=second)
        return registry(request)

    async with httpx.AsyncClient(base_url="https://cp", transport=httpx.MockTransport(both)) as client_of_both:
        _, its_folder = await store.pull("m", other, client_of_both)
        assert (folder / "fp32.onnx").samefile(its_folder / "fp32.onnx")
        with (folder / "fp32.onnx").open("r+b") as file:
            file.write(b"X")
        assert store.find(DIGEST) is None
        assert store.find(other) is None
        for digest in (DIGEST, other):
            _, folder = await store.pull("m", digest, client_of_both)
            assert (folder / "fp32.onnx").read_bytes() == FILES["fp32.onnx"]


def test_what_a_killed_process_left_behind_is_swept_up(tmp_path: Path) -> None:
    ModelStore(tmp_path)
    (tmp_path / "blobs" / ".incoming-1").write_bytes(b"half")
    (tmp_path / "versions" / ".incoming-2").mkdir()
    (tmp_path / "versions" / ".incoming-2" / "file").write_bytes(b"half")
    ModelStore(tmp_path)
    assert left_over(tmp_path) == []


def versions_of(registry: FakeRegistry, *numbers: bytes) -> tuple[dict[str, bytes], httpx.MockTransport]:
    """Manifests by digest, all with the same files, and a registry that has them."""
    manifests = {digest_bytes(data): data for data in (MANIFEST.replace(b'"1"', b'"%b"' % n) for n in numbers)}

    def answer(request: httpx.Request) -> httpx.Response:
        data = manifests.get(request.url.path.rpartition("/")[2])
        return registry(request) if data is None else httpx.Response(200, content=data)

    return manifests, httpx.MockTransport(answer)


def left(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("*/*"))


async def test_old_versions_go_and_what_others_link_to_stays(
    store: ModelStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    manifests, transport = versions_of(registry, b"1", b"2", b"3")
    async with httpx.AsyncClient(base_url="https://cp", transport=transport) as client:
        for digest in manifests:
            await store.pull("m", digest, client)
        first, *others = manifests
        await store.keep_only(lambda: others)
        assert [store.find(digest) is not None for digest in manifests] == [False, True, True]
        # What the others share is not pulled for the next one.
        assert store._blobs / registry.weights.removeprefix("sha256:") in left(tmp_path)
        await store.keep_only(list)
        assert left(tmp_path) == []
        await store.pull("m", first, client)
        assert store.find(first) is not None


async def test_nothing_is_removed_while_a_version_is_pulled(store: ModelStore, registry: FakeRegistry) -> None:
    manifests, transport = versions_of(registry, b"1", b"2")
    old, new = manifests
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        if registry.weights in request.url.path:
            asked.set()
            await go_on.wait()
        return transport.handler(request)  # type: ignore[return-value]

    async with httpx.AsyncClient(base_url="https://cp", transport=transport) as client:
        await store.pull("m", old, client)
    (store._blobs / registry.weights.removeprefix("sha256:")).unlink()
    async with httpx.AsyncClient(base_url="https://cp", transport=httpx.MockTransport(slow)) as client:
        pulling = asyncio.create_task(store.pull("m", new, client))
        await asked.wait()
        await store.keep_only(list)
        assert store.find(old) is not None
        go_on.set()
        await pulling
    await store.keep_only(lambda: [new])
    assert (store.find(old), store.find(new) is not None) == (None, True)


async def test_what_the_disk_will_not_give_up_is_no_failure(
    store: ModelStore, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await store.pull("m", DIGEST, client)

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(stores.shutil, "rmtree", refuse)
    await store.keep_only(list)
    assert "could not be removed: [Errno 13]" in caplog.text
    assert store.find(DIGEST) is not None


async def test_a_pull_that_is_cancelled_after_the_file_is_in_place_stays_cancelled(
    store: ModelStore, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, pulling = stores._settle, asyncio.Future[asyncio.Task[object]]()

    async def pull() -> None:
        await store.pull("m", DIGEST, client)

    async def in_thread(work: Callable[..., object], *arguments: object) -> object:
        found = work(*arguments)
        if work is real:
            (await pulling).cancel()
            await asyncio.sleep(0)
        return found

    monkeypatch.setattr(stores.asyncio, "to_thread", in_thread)
    task = asyncio.create_task(pull())
    pulling.set_result(task)  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left_over(tmp_path) == []
