"""A call of a model that no node has, since nobody asked for it for long: it is brought back, or the caller is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from nearmesh_controlplane.registry.authority import Authority

from nearmesh.client.routes import Routes
from nearmesh.client.settings import ConnectSettings, Token
from nearmesh.errors import NotReady
from nearmesh.snapshot import SnapshotKeeper
from nearmesh.v1 import route_pb2 as pb
from tests.snapshots import EUROPE

SERVED = pb.Route(
    model="m",
    objective="nearest",
    deadline_ms=300,
    candidates=[pb.Candidate(node="a", site="a", region=EUROPE, address="a:1", ready=True)],
)
NOBODY = pb.Route(model="m", objective="nearest", deadline_ms=300)


class Planes:
    """A control plane whose watch says what it is given, and that brings models back in that many milliseconds."""

    address = "cp:1"

    def __init__(self, *ready_in_ms: float) -> None:
        self.said: asyncio.Queue[pb.Route] = asyncio.Queue()
        self.said.put_nowait(NOBODY)
        self.ready_in_ms = list(ready_in_ms)
        self.asked: list[pb.ResolveRequest] = []
        self.error: Exception | None = None
        self.on_asked: Callable[[], None] = lambda: None

    def routes(self, address: str) -> Planes:
        return self

    async def Watch(self, request: pb.ResolveRequest, metadata: Any) -> AsyncIterator[pb.Route]:
        while True:
            yield await self.said.get()

    async def Resolve(self, request: pb.ResolveRequest, timeout: float, metadata: Any) -> pb.Route:
        self.asked.append(request)
        if self.error:
            raise self.error
        self.on_asked()
        takes_ms = self.ready_in_ms.pop(0) if len(self.ready_in_ms) > 1 else self.ready_in_ms[0]
        return SERVED if takes_ms < 0 else pb.Route(model="m", ready_in_ms=takes_ms)

    def answered(self) -> None:
        return None

    def failed(self, address: str, error: Any) -> bool:
        return True


Follow = Callable[[Planes], Routes]


@pytest.fixture
async def follow(tmp_path: Path) -> AsyncIterator[Follow]:
    authority = Authority.open("mesh", tmp_path / "authority")
    settings = ConnectSettings(control_plane="cp:1", ca_pem=authority.ca_pem, region=EUROPE, token="t")
    made: list[Routes] = []

    def begin(planes: Planes) -> Routes:
        keeper = SnapshotKeeper(authority.ca_pem, None)
        made.append(Routes(planes, settings, Token(settings), keeper, lambda: None))  # type: ignore[arg-type]
        return made[-1]

    yield begin
    for routes in made:
        await routes.close()


async def test_a_call_waits_until_somebody_has_it(follow: Follow) -> None:
    planes = Planes(100.0)
    planes.on_asked = lambda: planes.said.put_nowait(SERVED)
    routes = follow(planes)
    route = await routes.get("m", "", 5.0)
    assert not route.served
    await routes.bring_back("m", "", 5.0)
    assert routes.latest(route, "m", "").served
    assert [(asked.model, asked.region) for asked in planes.asked] == [("m", EUROPE)]


async def test_a_call_with_too_little_time_is_told_when_to_come_again(follow: Follow) -> None:
    planes = Planes(1234.0)
    routes = follow(planes)
    await routes.get("m", "", 5.0)
    with pytest.raises(NotReady, match=r"takes about 1\.2 s, and the call has 1\.0 s left") as refused:
        await routes.bring_back("m", "", 1.0)
    assert refused.value.retry_after_ms == 1234


async def test_a_node_that_takes_longer_than_was_said_is_waited_for_until_the_deadline(follow: Follow) -> None:
    planes = Planes(100.0)
    routes = follow(planes)
    await routes.get("m", "", 5.0)
    with pytest.raises(NotReady) as refused:
        await routes.bring_back("m", "", 0.5)
    assert refused.value.retry_after_ms == 100
    assert 2 <= len(planes.asked) <= 4


@pytest.mark.parametrize("said", [0.0, -1.0])
async def test_where_nobody_brings_it_back_the_call_goes_on_as_ever(follow: Follow, said: float) -> None:
    """It is not asleep, or somebody has it by now."""
    planes = Planes(said)
    routes = follow(planes)
    await routes.get("m", "", 5.0)
    await routes.bring_back("m", "", 5.0)
    assert len(planes.asked) == 1


async def test_a_control_plane_that_cannot_be_asked_changes_nothing(follow: Follow) -> None:
    planes = Planes(100.0)
    unavailable = grpc.StatusCode.UNAVAILABLE
    planes.error = grpc.aio.AioRpcError(unavailable, grpc.aio.Metadata(), grpc.aio.Metadata(), "away")
    routes = follow(planes)
    await routes.get("m", "", 5.0)
    await routes.bring_back("m", "", 5.0)


async def test_nobody_is_asked_while_the_control_plane_is_away(follow: Follow) -> None:
    planes = Planes(100.0)
    routes = follow(planes)
    await routes.get("m", "", 5.0)
    next(iter(routes._watched.values())).lost(NotReady("away"))
    await routes.bring_back("m", "", 5.0)
    assert planes.asked == []
