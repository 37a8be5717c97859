"""The node's model store against a registry that lies, breaks off or is not there."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from nearmesh_agent.store import disk as disks
from nearmesh_agent.store import planner as planners
from nearmesh_agent.store.pull import Pull
from nearmesh_agent.store.store import ModelStore

from nearmesh.errors import DigestMismatch, NotFound, PackageError, Unreachable
from nearmesh.oci import CODE_TYPE, Descriptor, Manifest, digest_bytes
from tests.fake_registry import DIGEST, FILES, MANIFEST, FakeReader, FakeRegistry, manifest_of


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planners, "BACKOFF_S", (0.0, 0.0))


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ModelStore]:
    found = ModelStore(tmp_path)
    yield found
    found.close()


def again(tmp_path: Path) -> ModelStore:
    """As a restarted process finds it."""
    return ModelStore(tmp_path)


def left_over(tmp_path: Path) -> list[Path]:
    return list(tmp_path.rglob(".incoming-*"))


async def test_a_pulled_version_is_a_folder_with_its_files(
    store: ModelStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    assert store.find(DIGEST) is None and store.proven == []
    manifest, folder = await store.pull("m", DIGEST, registry)
    assert (manifest.model, manifest.version) == ("m", "1")
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert left_over(tmp_path) == [] and not list((tmp_path / "drafts").iterdir())
    assert store.proven == [DIGEST]
    # The next start needs no registry.
    registry.error = Unreachable("away")
    restarted = again(tmp_path)
    assert restarted.find(DIGEST) == (manifest, folder)
    assert await restarted.pull("m", DIGEST, registry) == (manifest, folder)
    restarted.close()


async def test_what_new_versions_are_made_with_is_not_pulled(store: ModelStore, tmp_path: Path) -> None:
    recipe = Descriptor(CODE_TYPE, digest_bytes(b"recipe"), 6, "training.py", workshop=True)
    made = replace(manifest_of(FILES), workshop=(recipe,)).to_bytes()
    registry = FakeRegistry(made)
    digest = digest_bytes(made)
    _, folder = await store.pull("m", digest, registry)
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {*FILES, "manifest.json"}
    assert recipe.digest not in registry.asked
    restarted = again(tmp_path)
    assert restarted.find(digest), "nothing is missing"
    restarted.close()


def change(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


LIES: dict[str, Callable[[bytes], bytes]] = {
    "changed": change,
    "shorter": lambda data: data[:-1],
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("lie", LIES)
async def test_p5_a_blob_that_is_not_what_its_digest_says_is_not_kept(
    store: ModelStore, registry: FakeRegistry, tmp_path: Path, lie: str
) -> None:
    sound = registry.blobs[registry.weights]
    registry.blobs[registry.weights] = LIES[lie](sound)
    with pytest.raises(DigestMismatch, match=r"fp32\.onnx"):
        await store.pull("m", DIGEST, registry)
    assert store.find(DIGEST) is None and store.proven == []
    assert left_over(tmp_path) == []
    assert not (tmp_path / "blobs" / registry.weights.removeprefix("sha256:")).exists()
    registry.blobs[registry.weights] = sound
    _, folder = await store.pull("m", DIGEST, registry)
    assert (folder / "fp32.onnx").read_bytes() == sound


async def test_what_a_registry_has_beyond_the_blob_is_not_read(store: ModelStore, registry: FakeRegistry) -> None:
    registry.blobs[registry.weights] += b"x"
    _, folder = await store.pull("m", DIGEST, registry)
    assert (folder / "fp32.onnx").read_bytes() == FILES["fp32.onnx"]


async def test_p5_a_manifest_that_is_not_what_its_digest_says_is_refused(
    store: ModelStore, registry: FakeRegistry
) -> None:
    registry.manifests[DIGEST] = MANIFEST + b" "
    with pytest.raises(DigestMismatch, match="wanted " + DIGEST):
        await store.pull("m", DIGEST, registry)


async def test_a_manifest_that_is_none_is_refused(store: ModelStore, registry: FakeRegistry) -> None:
    body = b'{"not": "a manifest"}'
    registry.manifests[digest_bytes(body)] = body
    with pytest.raises(PackageError):
        await store.pull("m", digest_bytes(body), registry)


async def test_a_registry_that_does_not_answer_with_it(store: ModelStore, registry: FakeRegistry) -> None:
    registry.error = Unreachable("the registry answered 500")
    with pytest.raises(Unreachable):
        await store.pull("m", DIGEST, registry)
    registry.error = None
    weights = registry.blobs.pop(registry.weights)
    with pytest.raises(NotFound, match=registry.weights):
        await store.pull("m", DIGEST, registry)
    registry.blobs[registry.weights] = weights
    await store.pull("m", DIGEST, registry)


async def test_a_registry_that_breaks_off_for_ever_is_unreachable(store: ModelStore, tmp_path: Path) -> None:
    class Breaking(FakeRegistry):
        def open(self, digest: str, offset: int, size: int, wait_s: float) -> FakeReader:
            return FakeReader(self, self.blobs[digest][offset : offset + size], broken_at=0)

    with pytest.raises(Unreachable, match="connection reset"):
        await store.pull("m", DIGEST, Breaking())
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
    store: ModelStore, registry: FakeRegistry, damage: str
) -> None:
    _, folder = await store.pull("m", DIGEST, registry)
    DAMAGES[damage](folder)
    assert store.find(DIGEST) is None
    _, folder = await store.pull("m", DIGEST, registry)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert store.find(DIGEST) is not None


def versions_of(registry: FakeRegistry, *numbers: bytes) -> list[str]:
    """Digests of versions that all have the same files; the registry has them."""
    manifests = {digest_bytes(data): data for data in (MANIFEST.replace(b'"1"', b'"%b"' % n) for n in numbers)}
    registry.manifests |= manifests
    return list(manifests)


async def test_two_versions_share_equal_files_and_not_their_damage_unnoticed(
    store: ModelStore, registry: FakeRegistry
) -> None:
    """Files are hard links to blobs, so damage to one version's file may be damage to another's."""
    first, other = versions_of(registry, b"1", b"2")
    _, folder = await store.pull("m", first, registry)
    _, its_folder = await store.pull("m", other, registry)
    assert (folder / "fp32.onnx").samefile(its_folder / "fp32.onnx")
    with (folder / "fp32.onnx").open("r+b") as file:
        file.write(b"X")
    assert store.find(first) is None
    assert store.find(other) is None
    for digest in (first, other):
        _, folder = await store.pull("m", digest, registry)
        assert (folder / "fp32.onnx").read_bytes() == FILES["fp32.onnx"]


def test_what_a_killed_process_left_behind_is_swept_up(tmp_path: Path) -> None:
    again(tmp_path)
    (tmp_path / "blobs" / ".incoming-1").write_bytes(b"half")
    (tmp_path / "versions" / ".incoming-2").mkdir()
    (tmp_path / "versions" / ".incoming-2" / "file").write_bytes(b"half")
    again(tmp_path)
    assert left_over(tmp_path) == []


def left(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("*/*"))


async def test_old_versions_go_and_what_others_link_to_stays(
    store: ModelStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    versions = versions_of(registry, b"1", b"2", b"3")
    for digest in versions:
        await store.pull("m", digest, registry)
    first, *others = versions
    await store.keep_only(lambda: others)
    assert [store.find(digest) is not None for digest in versions] == [False, True, True]
    assert store.proven == sorted(others)
    # What the others share is not pulled for the next one.
    assert tmp_path / "blobs" / registry.weights.removeprefix("sha256:") in left(tmp_path)
    await store.keep_only(list)
    assert left(tmp_path) == []
    await store.pull("m", first, registry)
    assert store.find(first) is not None


async def test_nothing_is_removed_while_a_version_is_pulled(
    store: ModelStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    old, new = versions_of(registry, b"1", b"2")
    await store.pull("m", old, registry)
    (tmp_path / "blobs" / registry.weights.removeprefix("sha256:")).unlink()
    asked, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait(digest: str, offset: int, size: int) -> None:
        if digest == registry.weights:
            loop.call_soon_threadsafe(asked.set)
            assert go_on.wait(10)

    registry.before = wait
    pulling = asyncio.create_task(store.pull("m", new, registry))
    await asked.wait()
    await store.keep_only(list)
    assert store.find(old) is not None
    assert store.progress(new)[1] < store.progress(new)[0] == sum(map(len, FILES.values())) + 2
    go_on.set()
    await pulling
    assert store.progress(new) == (0, 0)
    await store.keep_only(lambda: [new])
    assert (store.find(old), store.find(new) is not None) == (None, True)


async def test_what_the_disk_will_not_give_up_is_no_failure(
    store: ModelStore, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await store.pull("m", DIGEST, registry)

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(disks.shutil, "rmtree", refuse)
        await store.keep_only(list)
    assert "could not be removed: [Errno 13]" in caplog.text
    assert store.find(DIGEST) is not None


async def test_a_pull_that_is_cancelled_stays_cancelled_and_is_taken_up_again(
    store: ModelStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    asked, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait(digest: str, offset: int, size: int) -> None:
        loop.call_soon_threadsafe(asked.set)
        assert go_on.wait(10)

    registry.before = wait
    task = asyncio.create_task(store.pull("m", DIGEST, registry))
    await asked.wait()
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left_over(tmp_path) == [] and store.find(DIGEST) is None
    registry.before = lambda digest, offset, size: None
    await store.pull("m", DIGEST, registry)
    assert store.find(DIGEST) is not None


async def test_what_goes_while_the_disk_is_counted_is_no_failure(
    store: ModelStore, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts become blobs at any moment."""
    await store.pull("m", DIGEST, registry)
    real = disks.Path.iterdir

    def with_ghosts(folder: Path) -> list[Path]:
        return [*real(folder), folder / "ghost"] if folder.is_relative_to(tmp_path) else list(real(folder))

    with monkeypatch.context() as patch:
        patch.setattr(disks.Path, "iterdir", with_ghosts)
        assert store._disk.room(0, 0).used_bytes == sum(map(len, FILES.values())) + 2
        store._disk.stored()
        store._disk.remove((), ())
    assert store.find(DIGEST) is not None


async def test_a_lack_of_file_descriptors_is_no_damage(
    store: ModelStore, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.pull("m", DIGEST, registry)

    def refuse(path: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(disks, "digest_file", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            await store.pull("m", DIGEST, registry)
    assert store.find(DIGEST) is not None


async def test_a_pull_that_is_broken_off_does_not_end_the_next_one_of_its_version(
    store: ModelStore, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what has come of that would be removed as what nobody needs."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def run(pull: Pull) -> tuple[Manifest, Path]:
        begun.set()
        try:
            await go_on.wait()
        finally:
            await asyncio.sleep(0)
        raise Unreachable("it was enough")

    monkeypatch.setattr(Pull, "run", run)
    first = asyncio.create_task(store.pull("m", DIGEST, registry))
    await begun.wait()
    begun.clear()
    second = asyncio.create_task(store.pull("m", DIGEST, registry))
    await begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert list(store._pulls) == [DIGEST]
    go_on.set()
    with pytest.raises(Unreachable):
        await second
    assert not store._pulls
