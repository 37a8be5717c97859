"""What runs beside the calls: probes that keep connections warm and round trips known, and reports of what they found.

The nodes of a route that matter most (`picker.probed`) are probed (ServerLive) at once, a few times in a row, then
every few seconds; any node that failed is probed when its time out is over, and the probe's answer brings it back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import grpc

from nearmesh.client.channels import raise_if_cancelled
from nearmesh.client.control import ControlPlanes
from nearmesh.client.experience import MIN_SAMPLES, Experience
from nearmesh.client.picker import Endpoint
from nearmesh.client.tally import Calls, Key
from nearmesh.client.tasks import end
from nearmesh.client.transport import Transport
from nearmesh.errors import MeshError
from nearmesh.v1 import route_pb2

log = logging.getLogger(__name__)

PROBE_EVERY_S = 3.0
# Of a probe: a few round trips for a new connection, however far.
PROBE_LIMIT_S = 2.0
REPORT_EVERY_S = 1.0
_REPORT_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class _Node:
    endpoint: Endpoint
    often: bool
    task: asyncio.Task[None]
    wake: asyncio.Event


class Prober:
    """One task for each node in use. `follow` whenever routes change; `close` when done."""

    def __init__(self, transport: Transport, experience: Experience) -> None:
        self._transport = transport
        self._experience = experience
        self._nodes: dict[str, _Node] = {}

    def follow(self, endpoints: Iterable[Endpoint], often: Collection[str]) -> None:
        """Looks after exactly these from now on: those in `often` by the clock, the others when they fail."""
        wanted = {endpoint.node: endpoint for endpoint in endpoints}
        for node, known in list(self._nodes.items()):
            if node not in wanted or _place(wanted[node]) != _place(known.endpoint) or known.often != (node in often):
                known.task.cancel()
                del self._nodes[node]
                if node not in wanted:
                    self._experience.forget(node)
        for node in [node for node in wanted if node not in self._nodes]:
            wake = asyncio.Event()
            work = self._keep(wanted[node], wake, often=node in often)
            task = asyncio.create_task(work, name=f"probe {node}")
            self._nodes[node] = _Node(wanted[node], node in often, task, wake)

    def wake(self, node: str) -> None:
        """The node has failed: look when its next probe is due."""
        if node in self._nodes:
            self._nodes[node].wake.set()

    async def close(self) -> None:
        tasks = [node.task for node in self._nodes.values()]
        self._nodes.clear()
        await end(tasks)

    async def _keep(self, endpoint: Endpoint, wake: asyncio.Event, *, often: bool) -> None:
        # The first probe opens the connection, so it is no sample.
        for _ in range(MIN_SAMPLES + 1 if often else 0):
            if not await self._probe(endpoint):
                break
        while True:
            await self._wait(endpoint.node, wake, PROBE_EVERY_S if often else math.inf)
            await self._probe(endpoint)

    async def _wait(self, node: str, wake: asyncio.Event, every_s: float) -> None:
        """Until the next regular probe, or until a failed node's time out is over."""
        clock = asyncio.get_running_loop().time
        regular_s = clock() + every_s * random.uniform(0.8, 1.2)
        while True:
            due_s = self._experience.probe_due_s(node) or regular_s
            try:
                async with asyncio.timeout(max(0.0, due_s - clock()) if math.isfinite(due_s) else None):
                    await wake.wait()
            except TimeoutError:
                return
            wake.clear()

    async def _probe(self, endpoint: Endpoint) -> bool:
        clock = asyncio.get_running_loop().time
        start_s = clock()
        try:
            warm = await self._transport.live(endpoint, PROBE_LIMIT_S)
        except MeshError as error:
            log.debug("probe node=%s failed: %s", endpoint.node, error)
            self._experience.failed(endpoint.node, now_s=clock())
            return False
        self._experience.answered(endpoint.node)
        if warm:
            self._experience.sample(endpoint.node, 1000 * (clock() - start_s), now_s=clock())
        return True


def _place(endpoint: Endpoint) -> tuple[str, str]:
    return (endpoint.address, endpoint.server_name)


async def report(
    control_planes: ControlPlanes,
    experience: Experience,
    region: str,
    metadata: Callable[[], tuple[tuple[str, str], ...]],
) -> None:
    """Sends new network times and counts of calls about every second, for ever.

    What cannot be sent is dropped: newer ones follow, and old ones would look like a burst of calls.
    """
    while True:
        await asyncio.sleep(REPORT_EVERY_S * random.uniform(0.8, 1.2))
        found, calls = experience.take_unreported(), experience.tally.take_unreported()
        if not (found or calls):
            continue
        samples = [route_pb2.LatencySample(node=node, network_ms=values) for node, values in found.items()]
        reports = [call_report(key, count) for key, count in calls.items()]
        try:
            request = route_pb2.ReportLatencyRequest(region=region, samples=samples, calls=reports)
            stub = control_planes.routes(control_planes.address)
            await stub.ReportLatency(request, timeout=_REPORT_LIMIT_S, metadata=metadata())
        except grpc.aio.AioRpcError as error:
            raise_if_cancelled(error)
            log.debug("latency report failed: %s", error.details())


def call_report(key: Key, calls: Calls) -> route_pb2.CallReport:
    """As the control plane is told."""
    return route_pb2.CallReport(
        model=key.model,
        node=key.node,
        objective=key.objective,
        answered=calls.answered,
        failed=calls.failed,
        within_p50=calls.within_p50,
        within_p95=calls.within_p95,
        within_p99=calls.within_p99,
        total_ms=calls.total_ms,
        predicted_ms=calls.predicted_ms,
        late=calls.late,
        # There is no call without a forecast.
        compared=calls.answered,
    )
