"""Working towards the wanted state: in one step, back when it is wrong, and through changes of mind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nearmesh_agent.serving.replica import ReplicaStats
from nearmesh_agent.serving.table import ReplicaTable
from nearmesh_agent.session import reconciler as reconcilers
from nearmesh_agent.session.reconciler import Reconciler

from nearmesh.errors import DigestMismatch, NotFound, NotReady, Unreachable, WarmupFailed
from nearmesh.v1 import node_pb2 as pb

READY, FAILED, PULLING = pb.REPLICA_STATE_READY, pb.REPLICA_STATE_FAILED, pb.REPLICA_STATE_PULLING
LOADING, UNLOADING = pb.REPLICA_STATE_LOADING, pb.REPLICA_STATE_UNLOADING


def digest(version: str) -> str:
    return "sha256:" + version[-1] * 64


@dataclass(slots=True, eq=False)
class FakeReplica:
    """Holds no engine; `let_go` ends what is in flight, `hung_up` its sequences."""

    name: str
    version: str
    digest: str
    ready: bool = True
    closed: bool = False
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    engine: Any = field(default_factory=lambda: SimpleNamespace(variant="fp32"))

    def stats(self) -> ReplicaStats:
        return ReplicaStats(service_ms_p50=1, service_ms_p95=2, inferences_per_second=3, in_flight=0)

    async def sequences_over(self) -> None:
        await self.hung_up.wait()

    async def close(self) -> None:
        await self.let_go.wait()
        self.closed = True


class Node:
    """A reconciler whose pulls and loads a test steers. Versions are named MODEL-NUMBER."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = ReplicaTable()
        self.loaded: list[FakeReplica] = []
        # By digest: what goes wrong, and what has to happen first.
        self.pull_errors: dict[str, Exception] = {}
        self.load_errors: dict[str, Exception] = {}
        self.pull_waits: dict[str, asyncio.Event] = {}
        self.load_waits: dict[str, asyncio.Event] = {}
        self.pulls: list[str] = []
        self.busy = False
        # Whether replicas stay open until they are let go.
        self.held = False
        # What had to stay on disk each time that a version began to serve.
        self.kept: list[set[str]] = []
        self.reconciler = Reconciler(
            self.table,
            self._pull,
            self._load,
            keep=folder / "wanted.pb",
            on_progress=lambda: None,
            tidy=self._tidy,
        )

    async def _pull(self, model: str, digest: str, registry_url: str) -> Path:
        self.pulls.append(digest)
        if digest in self.pull_waits:
            await self.pull_waits[digest].wait()
        if error := self.pull_errors.get(digest):
            raise error
        return self.folder / model

    async def _tidy(self) -> None:
        self.kept.append(self.reconciler.needed())

    async def _load(self, folder: Path, digest: str) -> Any:
        assert not self.busy, "two loads at a time"
        self.busy = True
        try:
            if digest in self.load_waits:
                await self.load_waits[digest].wait()
            await asyncio.sleep(0)
        finally:
            self.busy = False
        if error := self.load_errors.get(digest):
            raise error
        found = FakeReplica(folder.name, digest[-1], digest)
        found.hung_up.set()
        if not self.held:
            found.let_go.set()
        self.loaded.append(found)
        return found

    def want(self, *versions: str, removed: tuple[str, ...] = ()) -> None:
        wanted = [pb.WantedVersion(model=v[:-2], version=v[-1], digest=digest(v)) for v in versions]
        self.reconciler.want(pb.WantedState(versions=wanted, removed_nodes=removed))

    def states(self) -> dict[str, int]:
        return {status.model + "-" + status.digest[-1]: status.state for status in self.reconciler.statuses()}

    def detail(self, version: str) -> str:
        return next(s.detail for s in self.reconciler.statuses() if s.digest == digest(version))

    def answers(self, model: str = "m") -> str:
        return self.table.get(model).version


async def until(check: Callable[[], bool]) -> None:
    """Lets the other tasks run until it is so."""
    async with asyncio.timeout(5):
        while not check():  # noqa: ASYNC110  # each turn of the loop is a step of the others
            await asyncio.sleep(0)


async def still(node: Node, *facts: Callable[[], object]) -> None:
    """Lets every task go as far as it can, and sees the same as before."""
    before = [fact() for fact in facts]
    for _ in range(50):
        await asyncio.sleep(0)
    assert [fact() for fact in facts] == before


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """Tries again at once."""
    monkeypatch.setattr(reconcilers, "RETRY_S", (0.0, 0.0))
    found = Node(tmp_path)
    yield found
    for replica in found.loaded:
        replica.let_go.set()
    await found.reconciler.close()


async def test_a_wanted_version_is_pulled_loaded_and_serves(node: Node) -> None:
    node.pull_waits[digest("m-1")], node.load_waits[digest("m-1")] = asyncio.Event(), asyncio.Event()
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": PULLING})
    with pytest.raises(NotReady, match="being loaded"):
        node.table.get("m")
    node.pull_waits[digest("m-1")].set()
    await until(lambda: node.states() == {"m-1": LOADING})
    node.load_waits[digest("m-1")].set()
    await until(lambda: node.states() == {"m-1": READY})
    assert node.answers() == "1"
    (status,) = node.reconciler.statuses()
    assert (status.variant, status.service_ms_p95, status.inferences_per_second) == ("fp32", 2, 3)


async def test_the_old_version_answers_until_the_new_one_takes_over_and_is_then_closed(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.load_waits[digest("m-2")] = asyncio.Event()
    old = node.loaded[0]
    old.let_go.clear()
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": LOADING})
    assert node.answers() == "1"
    node.load_waits[digest("m-2")].set()
    await until(lambda: node.states() == {"m-1": UNLOADING, "m-2": READY})
    assert (node.answers(), old.closed) == ("2", False)
    old.let_go.set()
    await until(lambda: node.states() == {"m-2": READY})
    assert old.closed


async def test_p5_a_version_that_proves_wrong_never_serves_and_is_not_tried_again(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.load_errors[digest("m-2")] = WarmupFailed("off by one")
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": FAILED})
    assert node.detail("m-2") == "WARMUP_FAILED: off by one"
    assert node.answers() == "1"
    # Neither time nor another message makes it right.
    node.want("m-2", removed=("other",))
    await still(node, node.states, node.answers, lambda: len(node.pulls))
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    assert node.pulls.count(digest("m-1")) == 1


@pytest.mark.parametrize(
    "error",
    [DigestMismatch("rotten"), NotFound("not yet"), Unreachable("away"), OSError(28, "No space left on device")],
)
async def test_what_may_come_right_is_tried_until_it_does(node: Node, error: Exception) -> None:
    node.pull_errors[digest("m-1")] = error
    node.want("m-1")
    await until(lambda: len(node.pulls) >= 3)
    await until(lambda: node.states() == {"m-1": FAILED} or bool(node.pulls.clear()))
    assert node.detail("m-1").partition(":")[0] in ("DIGEST_MISMATCH", "NOT_FOUND", "UNREACHABLE", "STORAGE")
    del node.pull_errors[digest("m-1")]
    await until(lambda: node.states() == {"m-1": READY})


async def test_what_is_no_longer_wanted_goes(node: Node) -> None:
    node.want("m-1", "n-3")
    await until(lambda: node.states() == {"m-1": READY, "n-3": READY})
    node.want("n-3")
    await until(lambda: node.states() == {"n-3": READY})
    assert node.loaded[0].closed
    with pytest.raises(NotFound):
        node.table.get("m")


async def test_a_model_that_failed_and_is_no_longer_wanted_is_unknown_again(node: Node) -> None:
    node.load_errors[digest("m-1")] = WarmupFailed("off by one")
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": FAILED})
    with pytest.raises(NotReady):
        node.table.get("m")
    node.want()
    await until(lambda: node.states() == {})
    with pytest.raises(NotFound):
        node.table.get("m")


async def test_a_change_of_mind_while_the_new_version_is_on_its_way(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.pull_waits[digest("m-2")] = asyncio.Event()
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": PULLING})
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.pull_waits[digest("m-2")].set()
    await still(node, node.states, node.answers)
    assert node.answers() == "1"


async def test_a_change_of_mind_while_the_old_version_is_on_its_way_out(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.loaded[0].let_go.clear()
    node.want("m-2")
    await until(lambda: node.states().get("m-2") == READY)
    node.want("m-1")
    await until(lambda: node.states().get("m-1") == READY)
    await until(lambda: node.answers() == "1")
    node.loaded[0].let_go.set()
    await until(lambda: node.states() == {"m-1": READY})
    await still(node, node.states, node.answers)
    assert all(replica.closed for replica in node.loaded[:-1])


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_was_wanted_before_the_last_wish_is_what_serves(node: Node, seed: int) -> None:
    chance = random.Random(seed)
    node.held = True
    for _ in range(30):
        wish = [
            f"{model}-{chance.randint(start, start + 2)}"
            for model, start in (("m", 1), ("n", 4))
            if chance.random() < 0.8
        ]
        node.want(*wish)
        for replica in node.loaded:
            if chance.random() < 0.3:
                replica.let_go.set()
        for _ in range(chance.randint(0, 8)):
            await asyncio.sleep(0)
    node.held = False
    for replica in node.loaded:
        replica.let_go.set()
    await until(lambda: node.states() == dict.fromkeys(wish, READY))
    assert {version for version in wish if node.answers(version[:-2]) == version[-1]} == set(wish)
    await still(node, node.states)
    serving = {id(node.table.get(version[:-2])) for version in wish}
    assert [replica.closed for replica in node.loaded if id(replica) not in serving] == [True] * (
        len(node.loaded) - len(serving)
    )


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


async def test_a_hanging_engine_shows_in_the_report(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.loaded[0].ready = False
    assert node.states() == {"m-1": FAILED}
    assert node.detail("m-1") == "an engine call hangs"
    # It recovers by itself, without another load.
    node.loaded[0].ready = True
    assert node.states() == {"m-1": READY}


class Disk:
    """Stands in for `write_private`, on a disk that may be full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self._write = reconcilers.write_private
        monkeypatch.setattr(reconcilers, "write_private", self)

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


async def test_a_bug_while_loading_is_a_failure_with_a_reason(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.load_errors[digest("m-2")] = ZeroDivisionError("oops")
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": READY, "m-2": FAILED})
    assert node.detail("m-2") == "internal error; the node's log has the cause"
    assert "ZeroDivisionError: oops" in caplog.text
    assert node.answers() == "1"


async def test_p4_an_old_version_stays_for_its_sequences(node: Node) -> None:
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    old = node.loaded[0]
    old.hung_up.clear()
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": UNLOADING, "m-2": READY})
    await still(node, node.states, lambda: old.closed)
    old.hung_up.set()
    await until(lambda: node.states() == {"m-2": READY})
    assert old.closed


async def test_a_leaving_node_closes_what_waits_for_sequences(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.want("m-1")
    await until(lambda: node.states() == {"m-1": READY})
    node.loaded[0].hung_up.clear()
    node.want("m-2")
    await until(lambda: node.states() == {"m-1": UNLOADING, "m-2": READY})
    async with asyncio.timeout(5):
        await node.reconciler.close()
    assert all(replica.closed for replica in node.loaded)


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
    del after.reconciler._progress[digest("m-1")]
    after.pull_waits[digest("m-1")].set()
    await until(lambda: after.states() == {"m-2": FAILED} and "the last version failed too" in caplog.text)
    await still(after, after.states)
    assert "bug while bringing" not in caplog.text
    await after.reconciler.close()
