"""`AdminClient.runs` over gRPC as it is: TLS, a service that answers what it is told, and control planes that die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from nearmesh.client import runs
from nearmesh.client.admin import AdminClient
from nearmesh.errors import InvalidInput, NotFound, NotLeader, Unreachable, Unsupported
from nearmesh.v1 import run_pb2, run_pb2_grpc
from tests.client_mesh import CONTROL, OPTIONS, TOKEN, Authority, abort
from tests.fake_runs import RUN, ended, run, served


class Service(run_pb2_grpc.RunServiceServicer):  # type: ignore[misc]
    """Knows one run. Watching tells `words`, and then waits."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.words = [run()]
        # The next calls end so.
        self.errors: list[Any] = []
        self.watchers = 0

    async def _noted(self, request: Any, context: Any) -> None:
        assert dict(context.invocation_metadata())["authorization"] == f"Bearer {TOKEN}"
        self.asked.append(request)
        if self.errors:
            await abort(context, self.errors.pop(0))

    async def Start(self, request: Any, context: Any) -> Any:
        await self._noted(request, context)
        return run(asked=request)

    async def Get(self, request: Any, context: Any) -> Any:
        await self._noted(request, context)
        if request.run != RUN:
            await abort(context, NotFound(f"no run {request.run!r}"))
        return run()

    async def List(self, request: Any, context: Any) -> Any:
        await self._noted(request, context)
        return run_pb2.ListRunsResponse(runs=[served(), run()])

    async def Stop(self, request: Any, context: Any) -> Any:
        await self._noted(request, context)
        return ended(run_pb2.RUN_STATE_STOPPED)

    async def Promote(self, request: Any, context: Any) -> Any:
        await self._noted(request, context)
        if request.options.step_s < 0:
            await abort(context, InvalidInput("step_s is -1"))
        return run(state=run_pb2.RUN_STATE_CHECKING)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._noted(request, context)
        self.watchers += 1
        try:
            for word in self.words:
                yield word
            if self.words[-1].state not in runs.ENDED:
                await asyncio.get_running_loop().create_future()
        finally:
            self.watchers -= 1


class Plane:
    """A control plane of runs alone, which may die and come back on its port."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.authority = Authority()
        self._credentials = self.authority.server_credentials(CONTROL)
        self.port = 0
        self._server: grpc.aio.Server

    async def start(self) -> None:
        self._server = grpc.aio.server(options=OPTIONS)
        if self.service is not None:
            run_pb2_grpc.add_RunServiceServicer_to_server(self.service, self._server)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", self._credentials)
        assert self.port
        await self._server.start()

    async def kill(self) -> None:
        await self._server.stop(None)

    def client(self, addresses: str = "") -> AdminClient:
        return AdminClient(addresses or f"127.0.0.1:{self.port}", self.authority.pem, TOKEN)


@pytest.fixture
async def plane(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plane]:
    monkeypatch.setattr(runs, "AGAIN_S", 0.02)
    found = Plane(Service())
    await found.start()
    try:
        yield found
    finally:
        await found.kill()


async def test_each_question_and_its_answer(plane: Plane) -> None:
    async with plane.client() as admin:
        request = run_pb2.StartRunRequest(model="digits", rounds=3, idempotency_key="mine", app=b"fab")
        assert (await admin.runs.start(request)).asked == request
        assert (await admin.runs.get(RUN)).id == RUN
        assert [one.id for one in await admin.runs.list("digits", 5)] == [RUN, RUN]
        assert (await admin.runs.stop(RUN)).state == run_pb2.RUN_STATE_STOPPED
        assert (await admin.runs.promote(RUN)).state == run_pb2.RUN_STATE_CHECKING
        assert plane.service.asked[1:] == [
            run_pb2.GetRunRequest(run=RUN),
            run_pb2.ListRunsRequest(model="digits", limit=5),
            run_pb2.StopRunRequest(run=RUN),
            run_pb2.PromoteRunRequest(run=RUN),
        ]
        with pytest.raises(NotFound, match="no run 'nope'"):
            await admin.runs.get("nope")
        with pytest.raises(InvalidInput, match="step_s is -1"):
            await admin.runs.promote(RUN, run_pb2.PromoteOptions(step_s=-1))


async def test_a_start_without_a_key_gets_one_and_an_answer_that_is_lost_names_it(plane: Plane) -> None:
    request = run_pb2.StartRunRequest(model="digits", rounds=3)
    async with plane.client() as admin:
        keys = {(await admin.runs.start(request)).asked.idempotency_key for _ in range(2)}
        assert len(keys) == 2 and all(len(key) == 32 for key in keys) and not request.idempotency_key
        plane.service.errors = [Unreachable("cut")]
        with pytest.raises(
            Unreachable, match=r"start it again with the idempotency key [0-9a-f]{32}, and it is one run"
        ):
            await admin.runs.start(request)


async def test_a_watch_ends_with_the_run(plane: Plane) -> None:
    plane.service.words = [run(), served()]
    async with plane.client() as admin:
        assert [found async for found in admin.runs.watch(RUN)] == [run(), served()]
        with pytest.raises(NotFound):
            plane.service.errors = [NotFound("no such run")]
            await anext(admin.runs.watch("nope"))


async def test_a_watch_goes_on_over_a_restart_of_the_control_plane(plane: Plane) -> None:
    heard, away = [], []
    async with plane.client() as admin:
        async for found in admin.runs.watch(RUN, on_away=lambda: away.append(len(heard))):
            heard.append(found.state)
            if len(heard) == 1:
                await plane.kill()
                # The first word of the new one repeats the last of the old one.
                plane.service.words = [run(), run(state=run_pb2.RUN_STATE_CHECKING)]
                plane.service.errors = [NotLeader("who leads is not known yet")]
                await plane.start()
            elif len(heard) == 2:
                await plane.kill()
                plane.service.words = [served()]
                await plane.start()
    assert heard == [run_pb2.RUN_STATE_TRAINING, run_pb2.RUN_STATE_CHECKING, run_pb2.RUN_STATE_SERVED]
    assert away == [1, 2], "each absence is told once"
    assert plane.service.watchers == 0


async def test_another_control_plane_takes_over(plane: Plane) -> None:
    async with AsyncExitStack() as stack:
        other = Plane(Service())
        other.authority = plane.authority
        other._credentials = plane._credentials
        await other.start()
        stack.push_async_callback(other.kill)
        other.service.words = [served()]
        admin = await stack.enter_async_context(plane.client(f"127.0.0.1:{plane.port},127.0.0.1:{other.port}"))
        watch = admin.runs.watch(RUN)
        assert await anext(watch) == run()
        plane.service.errors = [NotLeader("another one leads")]
        await plane.kill()
        assert await anext(watch) == served()
        await watch.aclose()


async def test_who_waits_too_long_is_told_that_the_run_goes_on(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "AWAY_S", 0.0)
    async with plane.client() as admin:
        watch = admin.runs.watch(RUN)
        await anext(watch)
        await plane.kill()
        with pytest.raises(Unreachable, match=f"goes on by itself, and `nearmesh run watch {RUN}` shows how far"):
            await anext(watch)


@pytest.mark.parametrize("known", [False, True])
async def test_a_control_plane_that_was_never_there_is_told_at_once(plane: Plane, known: bool) -> None:
    plane.service.words = [served()]
    async with plane.client() as admin:
        await plane.kill()
        watch = admin.runs.watch(RUN, known=known)
        if not known:
            with pytest.raises(Unreachable, match=f"the control plane at 127.0.0.1:{plane.port} cannot be reached"):
                await anext(watch)
            return
        waiting = asyncio.ensure_future(anext(watch))
        await plane.start()
        assert await waiting == served()
        await watch.aclose()


async def test_a_control_plane_without_runs_is_named() -> None:
    bare = Plane(None)
    await bare.start()
    try:
        async with bare.client() as admin:
            for call in (admin.runs.get(RUN), anext(admin.runs.watch(RUN))):
                with pytest.raises(
                    Unsupported, match="this control plane does not offer federated runs: Method not found"
                ):
                    await call
    finally:
        await bare.kill()
