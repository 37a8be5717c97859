"""Whom a machine or a client asks for snapshots, and what it does with what it gets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from nearmesh_controlplane.registry.authority import Authority

from nearmesh.snapshot import SnapshotKeeper, sealed
from nearmesh.snapshot import follower as following
from nearmesh.snapshot.follower import Peer, SnapshotFollower
from nearmesh.snapshot.keeper import SNAPSHOT_FILE
from nearmesh.v1 import route_pb2 as pb
from tests.snapshots import NOW_S, snapshot

CONTROL_PLANE = Peer("control.example:7401")
ONE, TWO = Peer("10.0.0.1:8003", "one.mesh"), Peer("10.0.0.2:8003", "two.mesh")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "CONTROL_PLANE_FIRST_S", 0.0)
    monkeypatch.setattr(following, "_FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(following, "_MAX_RETRY_S", 0.001)


class Server:
    """Answers WatchSnapshot with these messages and then with an error, or with silence."""

    def __init__(self, *messages: pb.SignedSnapshot, stays: bool = False) -> None:
        self.messages, self.stays = messages, stays
        self.asked: list[pb.WatchSnapshotRequest] = []

    async def watch(self, request: pb.WatchSnapshotRequest, **_: Any) -> AsyncIterator[pb.SignedSnapshot]:
        self.asked.append(request)
        for message in self.messages:
            yield message
        if self.stays:
            await asyncio.Event().wait()
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "not there")


class Channel:
    """As much of gRPC's as a stub asks for."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def unary_unary(self, path: str, *_: Any, **__: Any) -> None:
        return None

    def unary_stream(self, path: str, *_: Any, **__: Any) -> Any:
        return self._server.watch if path.endswith("/WatchSnapshot") else None

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


class Setting:
    """A follower among servers."""

    def __init__(self, authority: Authority, path: Path, servers: dict[Peer, Server]) -> None:
        self.authority, self.servers = authority, servers
        self.keeper = SnapshotKeeper(authority.ca_pem, path, mesh="mesh", clock=lambda: NOW_S)
        self.failed: list[Peer] = []
        self.taken = asyncio.Event()
        self.follower = SnapshotFollower(
            self.keeper,
            region="here",
            control_plane=lambda: CONTROL_PLANE,
            peers=lambda: [peer for peer in servers if peer is not CONTROL_PLANE],
            connect=lambda peer: Channel(servers[peer]),  # type: ignore[arg-type,return-value]
            on_taken=self.taken.set,
            on_failed=self._failed,
        )

    def _failed(self, peer: Peer) -> bool:
        self.failed.append(peer)
        return True

    def signed(self, generation: int = 5) -> pb.SignedSnapshot:
        return sealed(snapshot(generation=generation), self.authority.key)


@pytest.fixture
def make(tmp_path: Path) -> Callable[[dict[Peer, Server]], Setting]:
    authority = Authority.open("mesh", tmp_path / "authority")
    return lambda servers: Setting(authority, tmp_path / SNAPSHOT_FILE, servers)


@contextmanager
def running(setting: Setting) -> Iterator[None]:
    task = asyncio.create_task(setting.follower.run())
    try:
        yield
    finally:
        task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)


async def test_the_control_planes_word_is_kept_and_no_peer_is_asked(make: Any, tmp_path: Path) -> None:
    setting = make({CONTROL_PLANE: Server(stays=True), ONE: Server()})
    setting.servers[CONTROL_PLANE].messages = (setting.signed(5), setting.signed(6))
    with running(setting):
        await until(lambda: setting.keeper.known is not None and setting.keeper.known.generation == 6)
        await setting.taken.wait()
        assert setting.follower.with_control_plane.is_set()
        assert setting.servers[CONTROL_PLANE].asked == [pb.WatchSnapshotRequest(region="here")]
        assert not setting.servers[ONE].asked
        await until((tmp_path / SNAPSHOT_FILE).exists)


async def test_without_the_control_plane_peers_are_asked_until_one_has_what_holds(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Authority.open("mesh", tmp_path / "stranger")
    setting = make({CONTROL_PLANE: Server(), ONE: Server(sealed(snapshot(generation=9), stranger.key)), TWO: Server()})
    setting.servers[TWO].messages = (setting.signed(),)
    with caplog.at_level(logging.WARNING), running(setting):
        await setting.taken.wait()
    assert setting.keeper.routes().generation == 5
    assert not setting.follower.with_control_plane.is_set()
    assert "refused a snapshot from peer=10.0.0.1:8003: the snapshot was not signed by this mesh" in caplog.text
    assert set(setting.failed) == {CONTROL_PLANE}


async def test_a_control_plane_that_left_is_asked_again_and_said_to_be_away(make: Any) -> None:
    setting = make({CONTROL_PLANE: Server()})
    setting.servers[CONTROL_PLANE].messages = (setting.signed(),)
    with running(setting):
        await until(lambda: len(setting.servers[CONTROL_PLANE].asked) >= 3)
    assert setting.failed and setting.keeper.routes()
    assert not setting.follower.with_control_plane.is_set()


async def test_a_peer_that_has_less_is_no_news_and_nothing_is_lost(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    setting = make({CONTROL_PLANE: Server(), ONE: Server()})
    setting.keeper.take(setting.signed(7))
    setting.servers[ONE].messages = (setting.signed(6),)
    with running(setting):
        await until(lambda: len(setting.servers[ONE].asked) >= 2)
    assert setting.keeper.routes().generation == 7
    assert not setting.taken.is_set()
    assert not caplog.records
