"""A reconciler whose pulls and loads a test steers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from nearmesh_agent.serving.measured import ReplicaStats
from nearmesh_agent.serving.table import ReplicaTable
from nearmesh_agent.serving.tally import Tally
from nearmesh_agent.session import crashes, remembered
from nearmesh_agent.session import reconciler as reconcilers
from nearmesh_agent.session.reconciler import Reconciler

from nearmesh.routing.times import Times
from nearmesh.v1 import node_pb2 as pb

READY, FAILED, PULLING = pb.REPLICA_STATE_READY, pb.REPLICA_STATE_FAILED, pb.REPLICA_STATE_PULLING
LOADING, UNLOADING = pb.REPLICA_STATE_LOADING, pb.REPLICA_STATE_UNLOADING
UNLOADED = pb.REPLICA_STATE_UNLOADED


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
    variant: str = "fp32"
    variant_why: str = ""
    fault: str = ""
    unloaded: bool = False
    active: bool = True
    load_s: float = 0.25
    waiting: int = 4
    on_trial: bool = False
    idle_s: float = 0.0
    tally: Tally = field(default_factory=Tally)

    def stats(self) -> ReplicaStats:
        return ReplicaStats(service=Times.spread(1, 2), queue=Times.certain(0), inferences_per_second=3, in_flight=0)

    async def sequences_over(self) -> None:
        await self.hung_up.wait()

    async def close(self) -> None:
        await self.let_go.wait()
        self.closed = True


class Node:
    """A reconciler whose pulls and loads a test steers. Versions are named MODEL-NUMBER."""

    def __init__(self, folder: Path, *, drain_s: float = 0.0) -> None:
        self.folder = folder
        self.table = ReplicaTable()
        self.loaded: list[FakeReplica] = []
        # By digest: what goes wrong, and what has to happen first.
        self.pull_errors: dict[str, Exception] = {}
        self.load_errors: dict[str, Exception] = {}
        self.pull_waits: dict[str, asyncio.Event] = {}
        self.load_waits: dict[str, asyncio.Event] = {}
        self.pulls: list[str] = []
        # Of loads, and whether they are of a version on trial.
        self.busy: set[bool] = set()
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
            drain_s=drain_s,
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

    async def _load(self, folder: Path, digest: str, *, on_trial: bool = False) -> Any:
        assert on_trial not in self.busy, "two loads at a time"
        self.busy.add(on_trial)
        try:
            if digest in self.load_waits:
                await self.load_waits[digest].wait()
            await asyncio.sleep(0)
        finally:
            self.busy.discard(on_trial)
        if error := self.load_errors.get(digest):
            raise error
        found = FakeReplica(folder.name, digest[-1], digest, on_trial=on_trial)
        found.hung_up.set()
        if not self.held:
            found.let_go.set()
        self.loaded.append(found)
        return found

    def want(
        self, *versions: str, removed: tuple[str, ...] = (), trial: str = "", share: float = 0.0, rollout: str = ""
    ) -> None:
        """`trial` is one more version, for that share of the requests."""
        wanted = [pb.WantedVersion(model=v[:-2], version=v[-1], digest=digest(v), rollout=rollout) for v in versions]
        if trial:
            wish = pb.WantedVersion(model=trial[:-2], version=trial[-1], digest=digest(trial), rollout=rollout)
            wish.trial.share = share
            wanted.append(wish)
        self.reconciler.want(pb.WantedState(versions=wanted, removed_nodes=removed))

    def states(self) -> dict[str, int]:
        return {status.model + "-" + status.digest[-1]: status.state for status in self.reconciler.statuses()}

    def status(self, version: str) -> pb.ReplicaStatus:
        return next(s for s in self.reconciler.statuses() if s.digest == digest(version))

    def detail(self, version: str) -> str:
        return self.status(version).detail

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


@asynccontextmanager
async def steered(folder: Path, monkeypatch: pytest.MonkeyPatch, *, drain_s: float = 0.0) -> AsyncIterator[Node]:
    """Tries again at once, and waits for no disk; nothing is left of it afterwards."""
    monkeypatch.setattr(reconcilers, "RETRY_S", (0.0, 0.0))
    for module in (crashes, remembered):
        monkeypatch.setattr(module, "write_private", Path.write_bytes)
    found = Node(folder, drain_s=drain_s)
    try:
        yield found
    finally:
        for replica in found.loaded:
            replica.let_go.set()
        await found.reconciler.close()
