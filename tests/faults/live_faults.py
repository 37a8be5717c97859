"""What the live run does to a mesh, one kind after the other: each begins, is held, is healed, and has passed when the
mesh is whole again."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from nearmesh.devmesh.mesh import LocalMesh
from nearmesh.devmesh.plan import link_name, node_of, round_trip_ms
from nearmesh.devmesh.wan.control import ControlClient
from nearmesh.errors import MeshError
from tests.faults.live_report import CONTROL_PLANE
from tests.faults.scenarios import until

# Added to a round trip: an answer is then later than the model's deadline.
SLOWER_BY_MS = 400.0
# A node that computes for a moment and stands still for a longer one: it has two fifths of its processor.
STUTTER_S = (0.1, 0.15)
# A spot notice that leaves a node less than it would like.
NOTICE_S = 6.0
# An orderly end of an agent of the local mesh, sequences and all.
ENDED_WITHIN_S = 20.0
PASSED_WITHIN_S = 60.0


class Faults:
    """Of one mesh, as the clients of one region feel them."""

    def __init__(self, mesh: LocalMesh, region: str, model: str) -> None:
        self.mesh = mesh
        self.region = region
        self.model = model
        self._wan = ControlClient(mesh.plan.wan_control)

    def begun(self, kind: str, target: str) -> AbstractAsyncContextManager[None]:
        """The fault lasts as long as the context."""
        return KINDS[kind](self, target)

    # What each does.

    @asynccontextmanager
    async def kill(self, node: str) -> AsyncIterator[None]:
        await self.mesh.find(node).kill()
        try:
            yield
        finally:
            await self.mesh.find(node).start()

    @asynccontextmanager
    async def site(self, node: str) -> AsyncIterator[None]:
        """Everything that stands there: the node, and where it is not the clients' own, the gateway."""
        region = _region(node)
        children = [self.mesh.nodes[region], *([self.mesh.gateways[region]] if region != self.region else [])]
        await asyncio.gather(*(child.kill() for child in children))
        try:
            yield
        finally:
            for child in children:
                await child.start()

    @asynccontextmanager
    async def freeze(self, node: str) -> AsyncIterator[None]:
        child = self.mesh.find(node)
        child.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            child.signal(signal.SIGCONT)

    @asynccontextmanager
    async def stutter(self, node: str) -> AsyncIterator[None]:
        """Slow by its processor: it gets a share of its time only."""
        child = self.mesh.find(node)

        async def stop_and_go() -> None:
            runs_s, stands_s = STUTTER_S
            while True:
                child.signal(signal.SIGSTOP)
                await asyncio.sleep(stands_s)
                child.signal(signal.SIGCONT)
                await asyncio.sleep(runs_s)

        stuttering = asyncio.create_task(stop_and_go())
        try:
            yield
        finally:
            stuttering.cancel()
            await asyncio.gather(stuttering, return_exceptions=True)
            child.signal(signal.SIGCONT)

    @asynccontextmanager
    async def far(self, node: str) -> AsyncIterator[None]:
        """Slow by its way."""
        usual_ms = round_trip_ms(self.region, _region(node))
        await self._wan.send("set", link=self._links(node), round_trip_ms=usual_ms + SLOWER_BY_MS)
        try:
            yield
        finally:
            await self._wan.send("set", link=self._links(node), round_trip_ms=usual_ms)

    @asynccontextmanager
    async def partition(self, node: str) -> AsyncIterator[None]:
        """The clients' region and the node cannot reach each other; the control plane reaches both."""
        await self._wan.send("cut", link=self._links(node))
        try:
            yield
        finally:
            await self._wan.send("heal", link=self._links(node))

    @asynccontextmanager
    async def drain(self, node: str) -> AsyncIterator[None]:
        async with self.mesh.admin() as admin:
            await admin.drain(node)
            try:
                yield
            finally:
                await admin.drain(node, undo=True)

    @asynccontextmanager
    async def notice(self, node: str) -> AsyncIterator[None]:
        file = self.mesh.plan.notice(_region(node))
        file.write_text(json.dumps({"action": "terminate", "seconds": NOTICE_S}))
        try:
            async with asyncio.timeout(NOTICE_S):
                assert await self.mesh.find(node).ended() == 0, f"{node} ended badly"
            yield
        finally:
            file.unlink()
            await self.mesh.find(node).start()

    @asynccontextmanager
    async def restart(self, node: str) -> AsyncIterator[None]:
        """SIGTERM, and up again as soon as it is down."""
        await _restarted(self.mesh, node)
        yield

    @asynccontextmanager
    async def reprice(self, node: str) -> AsyncIterator[None]:
        """The node becomes dear, and cheap again."""
        async with self.mesh.admin() as admin:
            usd = next(found.usd_per_hour for found in await admin.nodes() if found.id == node)
            await admin.set_price(node, 3 * usd)
            try:
                yield
            finally:
                await admin.set_price(node, usd)

    @asynccontextmanager
    async def kill_control_plane(self, _: str) -> AsyncIterator[None]:
        await self.mesh.control_plane.kill()
        try:
            yield
        finally:
            await self.mesh.control_plane.start()

    @asynccontextmanager
    async def freeze_control_plane(self, _: str) -> AsyncIterator[None]:
        self.mesh.control_plane.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.mesh.control_plane.signal(signal.SIGCONT)

    @asynccontextmanager
    async def restart_control_plane(self, _: str) -> AsyncIterator[None]:
        await _restarted(self.mesh, CONTROL_PLANE)
        yield

    def _links(self, node: str) -> str:
        return link_name(self.region, _region(node), "*")

    # When it has passed.

    async def passed(self) -> float:
        """Waits until every node is there and serves the model; when that was. Raises TimeoutError."""
        await until(self._whole, PASSED_WITHIN_S)
        self.mesh.write_state()
        return time.time()

    async def _whole(self) -> bool:
        try:
            async with self.mesh.admin() as admin:
                nodes = await admin.nodes()
                route = await admin.explain(self.model, self.region)
        except MeshError:
            return False
        return all(node.live for node in nodes) and all(candidate.ready for candidate in route.candidates)

    async def usable(self, within_ms: float) -> tuple[list[str], list[str]]:
        """Nodes that clients are sent to now, and all that would answer within a caller's deadline."""
        async with self.mesh.admin() as admin:
            route = await admin.explain(self.model, self.region)
        good = [c for c in route.candidates if c.ready and c.network_ms_p95 + c.service_ms_p95 < within_ms]
        placed = [c.node for c in good if c.share > 0] or [c.node for c in good[:1]]
        return placed, [c.node for c in good]


Begin = Callable[[Faults, str], AbstractAsyncContextManager[None]]

# Those of nodes, by the name in the results; then those of the control plane.
OF_NODES: Mapping[str, Begin] = {
    "kill": Faults.kill,
    "freeze": Faults.freeze,
    "partition": Faults.partition,
    "drain": Faults.drain,
    "reprice": Faults.reprice,
    "notice": Faults.notice,
    "far": Faults.far,
    "stutter": Faults.stutter,
    "restart": Faults.restart,
    "site": Faults.site,
}
OF_THE_CONTROL_PLANE: Mapping[str, Begin] = {
    "control plane killed": Faults.kill_control_plane,
    "control plane frozen": Faults.freeze_control_plane,
    "control plane restarted": Faults.restart_control_plane,
}
KINDS: Mapping[str, Begin] = {**OF_NODES, **OF_THE_CONTROL_PLANE}


def _region(node: str) -> str:
    return node.removeprefix(node_of(""))


async def _restarted(mesh: LocalMesh, name: str) -> None:
    child = mesh.find(name)
    child.signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(ENDED_WITHIN_S):
            code = await child.ended()
    except TimeoutError:
        child.signal(signal.SIGABRT)
        child.signal(signal.SIGCONT)
        await child.ended()
        raise AssertionError(f"{name} did not end in {ENDED_WITHIN_S} s:\n{child.last_words(80)}") from None
    assert code == 0, f"{name} ended with code {code}:\n{child.last_words(20)}"
    await child.start()
