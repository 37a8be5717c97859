"""Whom the SDK asks for a snapshot, and which nodes it goes on to remember, once the mesh has removed one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from nearmesh_controlplane.registry.authority import Authority

from nearmesh.client import routes as watching
from nearmesh.client.routes import LEFT_KEPT_S, Routes
from nearmesh.client.settings import ConnectSettings, Token
from nearmesh.client.snapshots import snapshot_peers
from nearmesh.errors import MeshError, Unreachable
from nearmesh.snapshot import SnapshotKeeper, sealed
from nearmesh.v1 import route_pb2 as pb
from tests.snapshots import EUROPE, NOW_S, snapshot

FALLBACKS = {"10.9.9.9:8001": "lost", "10.9.9.7:8001": "left", "10.9.9.8:8001": ""}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open("mesh", tmp_path / "authority")


@pytest.fixture
def keeper(authority: Authority) -> SnapshotKeeper:
    return SnapshotKeeper(authority.ca_pem, None, clock=lambda: NOW_S)


@pytest.fixture
def settings(authority: Authority) -> ConnectSettings:
    return ConnectSettings(control_plane="cp:1", ca_pem=authority.ca_pem, region=EUROPE, token="t", fallbacks=FALLBACKS)


def test_p8_a_removed_node_of_the_bootstrap_file_is_shown_no_token(
    authority: Authority, keeper: SnapshotKeeper, settings: ConnectSettings
) -> None:
    assert [peer.address for peer in snapshot_peers(keeper, settings)] == list(FALLBACKS), "nobody knows better"
    keeper.take(sealed(snapshot(removed_nodes=["lost"]), authority.key))
    found = [peer.address for peer in snapshot_peers(keeper, settings)]
    assert found == ["10.0.0.12:8001", "10.0.0.8:8001", "10.9.9.7:8001", "10.9.9.8:8001"]


class Planes:
    """One control plane whose watch gives these, and then waits or fails."""

    address = "cp:1"

    def __init__(self, *said: Any) -> None:
        self.said = list(said)
        self.asked = 0

    def routes(self, address: str) -> Planes:
        return self

    async def Watch(self, request: pb.ResolveRequest, metadata: Any) -> AsyncIterator[pb.Route]:
        self.asked += 1
        while self.said:
            found = self.said.pop(0)
            if isinstance(found, Exception):
                raise found
            yield found
        await asyncio.Event().wait()

    def answered(self) -> None:
        return None

    def failed(self, address: str, error: MeshError) -> bool:
        return True


def told(*nodes: str) -> pb.Route:
    """As the control plane says it."""
    named = [pb.Candidate(node=n, site=n, region=EUROPE, address=f"{n}:1", ready=True) for n in nodes]
    return pb.Route(model="m", objective="nearest", deadline_ms=300, candidates=named)


Follow = Callable[..., Routes]


@pytest.fixture
async def follow(keeper: SnapshotKeeper, settings: ConnectSettings) -> AsyncIterator[Follow]:
    made: list[Routes] = []

    def begin(planes: Planes, on_change: Callable[[], None] = lambda: None) -> Routes:
        made.append(Routes(planes, settings, Token(settings), keeper, on_change))  # type: ignore[arg-type]
        return made[-1]

    yield begin
    for routes in made:
        await routes.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)


async def test_p8_a_removed_node_is_no_last_resort(
    authority: Authority, keeper: SnapshotKeeper, follow: Follow
) -> None:
    keeper.take(sealed(snapshot(removed_nodes=["b"]), authority.key))
    planes = Planes(told("a", "b", "c"), told("a"))
    routes = follow(planes)
    route = await routes.get("m", "", 5.0)
    await until(lambda: not planes.said)
    assert [e.node for e in routes.latest(route, "m", "").endpoints] == ["a", "c"], "c merely left"
    assert LEFT_KEPT_S < 30, "who has no newer snapshot leaves a removed node in time, too"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(watching, "_MAX_RETRY_S", 0.001)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("bug", [KeyError("a field that nobody thought of"), None])
async def test_a_bug_ends_no_watch_and_is_logged(
    follow: Follow, caplog: pytest.LogCaptureFixture, bug: Exception | None
) -> None:
    """Be it in the stream, or in who is told of a change."""
    changes: list[int] = []

    def on_change() -> None:
        changes.append(1)
        if bug is None and len(changes) == 1:
            raise ZeroDivisionError

    planes = Planes(*([] if bug else [told("a")]), *([bug] if bug else []), told("b"))
    with caplog.at_level(logging.ERROR):
        routes = follow(planes, on_change)
        route = await routes.get("m", "", 5.0)
        await until(lambda: "b" in [e.node for e in routes.latest(route, "m", "").endpoints])
    assert planes.asked == 2
    assert "the watch met a bug, and begins anew model=m" in caplog.text
    assert caplog.records[0].exc_info


@pytest.mark.usefixtures("at_once")
async def test_who_waits_is_told_of_the_bug(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "CONTROL_PLANE_FIRST_S", 0.01)
    planes = Planes(*(KeyError("odd") for _ in range(10_000)))
    with pytest.raises(Unreachable, match="could not be followed: KeyError"):
        await follow(planes).get("m", "", 0.05)
