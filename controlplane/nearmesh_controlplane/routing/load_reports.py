"""The load reporting service: plain `xds:///` clients say how many calls they made, of which model, to which node.

Their clusters ask for it (`lrs_server`), so gRPC reports by itself. A client proves itself as on ADS: by the token in
its node's metadata. Load reports carry no times, so they count as demand and say nothing of latency.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

from envoy.service.load_stats.v3 import lrs_pb2, lrs_pb2_grpc
from google.protobuf import duration_pb2

from nearmesh.errors import DeadlineExceeded, InvalidInput, MeshError, PermissionDenied
from nearmesh.ids import check_label
from nearmesh.rpc import PEOPLE
from nearmesh.tokens import TokenVerifier
from nearmesh.v1 import route_pb2
from nearmesh.xds.ads import identity
from nearmesh_controlplane.routing.measurements import Measurements

log = logging.getLogger(__name__)

METHOD = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"

# Demand is averaged over longer than this, and thousands of clients report.
REPORT_EVERY_S = 10
ASK_WITHIN_S = 10.0
# A client that reports oftener than it was asked to is slowed down by as much.
LEAST_BETWEEN_S = 1.0
# Bounds of one report: each model with each objective, and each node of a large mesh.
MAX_CLUSTERS = 1_000
MAX_LOCALITIES = 2_000


# Gives a report in a client's name to whoever decides, if that is another control plane; whether it did.
PassOn = Callable[[route_pb2.ReportLatencyRequest, str], Awaitable[bool]]


async def _to_nobody(_request: route_pb2.ReportLatencyRequest, _reporter: str) -> bool:
    return False


class LoadReports(lrs_pb2_grpc.LoadReportingServiceServicer):  # type: ignore[misc]
    """Takes load reports over as the calls of a region's clients."""

    def __init__(
        self,
        measurements: Measurements,
        verifier: TokenVerifier,
        changed: Callable[[], None] = lambda: None,
        pass_on: PassOn = _to_nobody,
    ) -> None:
        """`changed` hears of each report, unless `pass_on` gave it to the control plane that leads."""
        self._pass_on = pass_on
        self._measurements = measurements
        self._verifier = verifier
        self._changed = changed
        self.streams = 0

    async def StreamLoadStats(
        self, requests: AsyncIterator[lrs_pb2.LoadStatsRequest], context: Any
    ) -> AsyncIterator[lrs_pb2.LoadStatsResponse]:
        """Asks for everything, and takes it over until the stream ends."""
        first = await _first(requests)
        if first is None:
            return
        who, region = identity(self._verifier, first.node), first.node.locality.region
        if who.role not in PEOPLE:
            raise PermissionDenied(f"{who} has no use for load reports; they are for clients")
        check_label("region", region)
        every = duration_pb2.Duration(seconds=REPORT_EVERY_S)
        self.streams += 1
        log.debug("load reports of peer=%s region=%s", who, region)
        try:
            yield lrs_pb2.LoadStatsResponse(send_all_clusters=True, load_reporting_interval=every)
            async for request in requests:
                await self._take(request, region, who.name)
                await asyncio.sleep(LEAST_BETWEEN_S)
        finally:
            self.streams -= 1

    async def _take(self, request: lrs_pb2.LoadStatsRequest, region: str, reporter: str) -> None:
        calls = list(calls_of(request.cluster_stats))
        if calls:
            # Any number, not only what a timedelta can hold; it is bounded where it is used.
            intervals = [stats.load_report_interval for stats in request.cluster_stats]
            over_s = max(interval.seconds + interval.nanos / 1e9 for interval in intervals)
            report = route_pb2.ReportLatencyRequest(region=region, calls=calls)
            try:
                if await self._pass_on(report, reporter):
                    return
            except MeshError as error:
                # While the leadership changes; the next report counts again.
                log.debug("load report of peer=%s was lost: %s", reporter, error.message)
                return
            self._measurements.report(report, kind="clients", reporter=reporter, over_s=over_s)
            self._changed()


def calls_of(clusters: Iterable[Any]) -> Iterator[route_pb2.CallReport]:
    """Calls by model, objective and node: a cluster is called MODEL, or MODEL/OBJECTIVE, a locality ends in a node.

    Raises InvalidInput when there are too many.
    """
    for number, cluster in enumerate(clusters):
        if number >= MAX_CLUSTERS or len(cluster.upstream_locality_stats) > MAX_LOCALITIES:
            raise InvalidInput(
                f"a load report of more than {MAX_CLUSTERS} clusters or {MAX_LOCALITIES} localities in one is not taken"
            )
        model, _, more = (cluster.cluster_service_name or cluster.cluster_name).partition("/")
        objective = more.partition("/")[0]
        for found in cluster.upstream_locality_stats:
            yield route_pb2.CallReport(
                model=model,
                objective=objective,
                node=found.locality.sub_zone,
                answered=found.total_successful_requests,
                failed=found.total_error_requests,
            )


async def _first(requests: AsyncIterator[lrs_pb2.LoadStatsRequest]) -> lrs_pb2.LoadStatsRequest | None:
    try:
        async with asyncio.timeout(ASK_WITHIN_S):
            return await anext(aiter(requests), None)
    except TimeoutError:
        raise DeadlineExceeded(f"the stream said nothing within {ASK_WITHIN_S:.0f} s") from None
