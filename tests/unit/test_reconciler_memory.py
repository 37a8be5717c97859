"""What a node remembers over a restart, and what it keeps on its disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_agent.session import remembered

from nearmesh.errors import NotReady, Unreachable, WarmupFailed
from nearmesh.v1 import node_pb2 as pb
from tests.steered_node import FAILED, PULLING, READY, Node, digest, steered, still, until


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    async with steered(tmp_path, monkeypatch) as found:
        yield found


async def test_p2_a_restart_goes_on_without_a_word_from_the_control_plane(node: Node, tmp_path: Path) -> None:
    node.want("m-1", removed=("outcast",))
    await until(lambda: node.states() == {"m-1": READY})
    after = Node(tmp_path)
    assert after.reconciler.restored
    assert list(after.reconciler.wanted.removed_nodes) == ["outcast"]
    after.reconciler.resume()
    await until(lambda: after.states() == {"m-1": READY})
    await after.reconciler.close()


async def test_p5_after_a_restart_the_last_version_that_served_stands_in_for_a_wrong_one(
    node: Node, tmp_path: Path
) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.load_errors[digest("m-2")] = WarmupFailed("off by one")
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": FAILED})
    after = Node(tmp_path)
    after.load_errors[digest("m-2")] = WarmupFailed("off by one")
    after.reconciler.resume()
    await until(lambda: after.states() == {"m-1": READY, "m-2": FAILED})
    assert after.answers() == "1"
    after.want("m-3")
    await until(lambda: after.states() == {"m-3": READY})
    await after.reconciler.close()


async def test_when_the_last_version_fails_as_well_nothing_serves_and_the_reason_is_the_wanted_ones(
    node: Node, tmp_path: Path
) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.load_errors[digest("m-2")] = WarmupFailed("off by one")
    node.want("m-2")
    await until(lambda: node.states().get("m-2") == FAILED)
    after = Node(tmp_path)
    after.load_errors[digest("m-2")] = WarmupFailed("off by one")
    after.pull_errors[digest("m-1")] = Unreachable("away")
    after.reconciler.resume()
    await until(lambda: after.states() == {"m-2": FAILED} and len(after.pulls) == 2)
    with pytest.raises(NotReady):
        after.table.get("m")
    await after.reconciler.close()


@pytest.mark.parametrize("file", ["wanted.pb", "served.pb"])
async def test_a_damaged_memory_is_no_reason_not_to_start(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(b"\xff\xff\xff")
    node = Node(tmp_path)
    assert not node.reconciler.restored
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    await node.reconciler.close()


class Disk:
    """Stands in for `write_private`, on a disk that may be full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self._write = remembered.write_private
        monkeypatch.setattr(remembered, "write_private", self)

    def __call__(self, path: Path, data: bytes) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self._write(path, data)


async def test_a_full_disk_stops_nothing_and_is_written_when_there_is_room(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(monkeypatch)
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    disk.full = True
    node.want("m-2")
    await until(lambda: node.states() == {"m-2": READY})
    assert "wanted.pb cannot be written" in caplog.text and "served.pb cannot be written" in caplog.text
    before = Node(tmp_path)
    assert before.reconciler.needed() == {digest("m-1")}
    await before.reconciler.close()
    # The same wish again changes nothing, but it was never written.
    disk.full = False
    node.want("m-2")
    after = Node(tmp_path)
    assert [version.version for version in after.reconciler.wanted.versions] == ["2"]
    after.load_errors[digest("m-3")] = WarmupFailed("off by one")
    after.want("m-3")
    await until(lambda: after.states() == {"m-2": READY, "m-3": FAILED})
    await after.reconciler.close()


async def test_the_disk_keeps_what_is_wanted_and_what_a_rollback_needs(node: Node, tmp_path: Path) -> None:
    for number, version in enumerate(("m-1", "m-2", "m-3"), 1):
        node.want(version, "n-9")
        await until(
            lambda version=version, number=number: node.states().get(version) == READY and len(node.kept) > number
        )
    assert node.kept[-1] == {digest("m-2"), digest("m-3"), digest("n-9")}
    # A restart remembers as much.
    assert Node(tmp_path).reconciler.needed() == node.kept[-1]


async def test_a_version_that_a_change_of_mind_took_away_while_it_was_brought_back(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    after = Node(tmp_path)
    after.load_errors[digest("m-2")] = WarmupFailed("off by one")
    after.pull_errors[digest("m-1")] = Unreachable("away")
    after.pull_waits[digest("m-1")] = asyncio.Event()
    after.want("m-2")
    await until(lambda: after.states() == {"m-1": PULLING, "m-2": FAILED})
    after.reconciler._progress.drop(digest("m-1"))
    after.pull_waits[digest("m-1")].set()
    await until(lambda: after.states() == {"m-2": FAILED} and "the last version failed too" in caplog.text)
    await still(after, after.states)
    assert "bug while bringing" not in caplog.text
    await after.reconciler.close()


async def test_who_else_has_a_version_is_no_news_to_the_disk(node: Node, tmp_path: Path) -> None:
    def wanted(*holders: str) -> pb.WantedState:
        found = [pb.Holder(node=name, address=f"{name}:8003") for name in holders]
        return pb.WantedState(versions=[pb.WantedVersion(model="m", version="1", digest=digest("m-1"), holders=found)])

    node.reconciler.want(wanted("a"))
    await until(lambda: node.states() == {"m-1": READY})
    before = _inodes(tmp_path)
    node.reconciler.want(wanted("a", "b"))
    assert [holder.node for holder in node.reconciler.wanted.versions[0].holders] == ["a", "b"]
    assert _inodes(tmp_path) == before


def _inodes(folder: Path) -> dict[str, int]:
    """A file that is written anew is another one."""
    return {path.name: path.stat().st_ino for path in folder.glob("*.pb")}


async def test_the_keys_that_versions_are_signed_by_are_remembered(node: Node, tmp_path: Path) -> None:
    node.want("m-1")
    state = pb.WantedState(versions=node.reconciler.wanted.versions, model_keys_pem=["key"])
    node.reconciler.want(state)
    assert list(Node(tmp_path).reconciler.wanted.model_keys_pem) == ["key"]


def test_p2_who_keeps_vectors_is_remembered_over_a_restart(tmp_path: Path) -> None:
    kept = remembered.Remembered(tmp_path / "wanted.pb")
    kept.want(pb.WantedState(vector_nodes=[pb.VectorNode(node="far", address="far:8003")]))
    again = remembered.Remembered(tmp_path / "wanted.pb")
    assert [one.node for one in again.wanted.vector_nodes] == ["far"]
