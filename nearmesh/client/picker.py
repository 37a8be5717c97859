"""In which order a call tries the nodes, and how long it waits for each: pure.

The rule is the mesh's own (`nearmesh.routing`), with two things that only this client knows put in: the network times
that it measured itself, and the nodes that have just failed it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nearmesh import routing
from nearmesh.v1 import route_pb2

# A node that has not answered after 4 times its expected 95th percentile is taken for frozen, but never within 250 ms
# of it: a short pause (a swap, a full core) is not worth a second request.
PATIENCE_FACTOR = 4.0
PATIENCE_FLOOR_S = 0.25
# A new connection sends about this much in its first round trip, twice that in the next, and so on.
FIRST_WINDOW_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A node as a candidate, and how to reach it."""

    candidate: routing.Candidate
    # host:port of the listener that takes bearer tokens.
    address: str
    # The name in the node's certificate.
    server_name: str

    @property
    def node(self) -> str:
        return self.candidate.node


@dataclass(frozen=True, slots=True)
class Route:
    """What the control plane last said about one model and objective."""

    model: str
    version: str
    digest: str
    objective: routing.Objective
    # Of the routing objective: the time within which an answer is wanted. Not how long a caller waits.
    deadline_ms: float
    endpoints: tuple[Endpoint, ...]

    @classmethod
    def from_message(cls, message: route_pb2.Route) -> Route:
        """Raises InvalidInput for an objective that this client does not know."""
        return cls(
            model=message.model,
            version=message.version,
            digest=message.digest,
            objective=routing.parse_objective(message.objective or routing.DEFAULT_OBJECTIVE),
            deadline_ms=message.deadline_ms or routing.DEFAULT_DEADLINE_MS,
            endpoints=tuple(_endpoint(candidate) for candidate in message.candidates),
        )

    def keeping(self, left: Collection[Endpoint]) -> Route:
        """With nodes that were in it until lately, as not ready: after a restart the control plane may know few."""
        here = {endpoint.node for endpoint in self.endpoints}
        gone = tuple(_unready(endpoint) for endpoint in left if endpoint.node not in here)
        return dataclasses.replace(self, endpoints=self.endpoints + gone)


@dataclass(frozen=True, slots=True)
class Choice:
    """One node in the order of a call."""

    endpoint: Endpoint
    why: str
    in_time: bool

    @property
    def node(self) -> str:
        return self.endpoint.node


def order(
    route: Route,
    *,
    measured: Mapping[str, tuple[float, float]],
    out: Collection[str] = (),
    current: str | None = None,
) -> list[Choice]:
    """Every node of the route, best first: those in service, then those in `out`, then those that are not ready.

    `measured` are this client's own network times by node, 50th and 95th percentile in ms. The last two groups are
    there because a call with nothing better to do may as well ask them: what is known of them may be old.
    """
    endpoints = {endpoint.node: endpoint for endpoint in route.endpoints}
    pool = [_with_own(endpoint.candidate, measured) for endpoint in route.endpoints]
    groups: Sequence[list[routing.Candidate]] = (
        [c for c in pool if c.ready and c.node not in out],
        [c for c in pool if c.ready and c.node in out],
        [c for c in pool if not c.ready],
    )
    found: list[Choice] = []
    for group in groups:
        for ranked in routing.rank(group, route.objective, route.deadline_ms, current=current):
            endpoint = endpoints[ranked.candidate.node]
            fresh = Endpoint(ranked.candidate, endpoint.address, endpoint.server_name)
            found.append(Choice(fresh, ranked.why, ranked.in_time))
    return found


def patience_s(candidate: routing.Candidate, request_bytes: int) -> float:
    """How long a call waits for this node alone before it asks the next one as well."""
    p95_s = candidate.total_ms_p95 / 1000
    return max(PATIENCE_FACTOR * p95_s, PATIENCE_FLOOR_S + p95_s) + _transfer_s(candidate, request_bytes)


def _transfer_s(candidate: routing.Candidate, request_bytes: int) -> float:
    """Extra round trips of a large request while the windows of TCP and HTTP/2 open, doubling each time."""
    doublings = math.log2(max(1.0, request_bytes / FIRST_WINDOW_BYTES))
    return doublings * candidate.network_ms_p95 / 1000


def _with_own(candidate: routing.Candidate, measured: Mapping[str, tuple[float, float]]) -> routing.Candidate:
    own = measured.get(candidate.node)
    return routing.with_network(candidate, *own) if own else candidate


def _unready(endpoint: Endpoint) -> Endpoint:
    why = "the control plane no longer names it"
    return dataclasses.replace(
        endpoint, candidate=dataclasses.replace(endpoint.candidate, ready=False, unready_why=why)
    )


def _endpoint(message: route_pb2.Candidate) -> Endpoint:
    candidate = routing.Candidate(
        node=message.node,
        site=message.site,
        region=message.region,
        ready=message.ready,
        network_ms_p50=message.network_ms_p50,
        network_ms_p95=message.network_ms_p95,
        network_measured=message.network_measured,
        service_ms_p50=message.service_ms_p50,
        service_ms_p95=message.service_ms_p95,
        usd_per_hour=message.usd_per_hour,
        usd_per_1000=message.usd_per_1000,
        unready_why="" if message.ready else message.why,
    )
    return Endpoint(candidate, message.address, message.server_name)
