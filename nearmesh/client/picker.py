"""In which order a call tries the nodes, and how long it waits for each: pure.

Where the control plane has placed this region's requests, a call goes by the shares: a site at random in proportion to
what its nodes have, in it the less busy of two nodes drawn likewise. Everything else goes by the mesh's own rule
(`nearmesh.routing`): the order of the other nodes, and of all where nothing was placed. Two things that only this
client knows are put in: the network times that it measured itself, and the nodes that fail it.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TypeVar

from nearmesh import routing
from nearmesh.routing import IN_TIME, Times
from nearmesh.routing.rule import nearer
from nearmesh.v1 import route_pb2

# A node that has not answered after 4 times its expected 95th percentile is taken for frozen, but never within 250 ms
# of it: a short pause (a swap, a full core) is no sign of that.
PATIENCE_FACTOR = 4.0
PATIENCE_FLOOR_S = 0.25
# A hedge is not sent earlier than this: below it the pauses of this client's own process would send one.
HEDGE_FLOOR_S = 0.005
# A copy of a call is a whole call to pay for. So it is sent as late as will do for the deadline that the model aims at,
# but no later than this many times the first node's forecast 95th percentile; and where it would come too late anyway,
# not before the first node is all but lost, after this many times its 99th.
MOST_PATIENT_P95S, HOPELESS_P99S = 2.0, 1.1
# Of nodes that answer within this of the soonest, the cheapest gets the copy.
AS_SOON_MS = 5.0
# A new connection sends about this much in its first round trip, twice that in the next, and so on.
FIRST_WINDOW_BYTES = 64 * 1024
# Of two nodes drawn, the second is asked if it is less busy by this share; closer ones stand as the shares have them.
BUSIER = 0.2
# At most this share of the nodes is out for being slow: someone has to serve.
MOST_SLOW = 0.5
# Own round trips overrule a placement when they move the chance to be in time by this much.
CLEARLY = 0.02
# Nodes of one route whose round trips are measured beside the calls.
MOST_PROBED = 5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A node as a candidate, and how to reach it."""

    candidate: routing.Candidate
    # host:port of the listener that takes bearer tokens.
    address: str
    # The name in the node's certificate.
    server_name: str
    # Why the control plane placed requests there, or did not.
    told: str = ""

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
    # Word for word.
    message: route_pb2.Route = field(default_factory=route_pb2.Route, compare=False, repr=False)

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
            message=message,
        )

    @property
    def served(self) -> bool:
        """Some node has the model and is ready."""
        return any(endpoint.candidate.ready for endpoint in self.endpoints)

    def keeping(self, left: Collection[Endpoint]) -> Route:
        """With nodes that were in it until lately, as not ready: after a restart the control plane may know few.

        But for those that a rule of residency took out: it never yields.
        """
        here, rule = {endpoint.node for endpoint in self.endpoints}, self.message
        may = [found for found in left if not rule.bound or found.candidate.region in rule.allowed_regions]
        gone = tuple(_unready(endpoint) for endpoint in may if endpoint.node not in here)
        return dataclasses.replace(self, endpoints=self.endpoints + gone)


@dataclass(frozen=True, slots=True)
class Choice:
    """One node in the order of a call."""

    endpoint: Endpoint
    why: str
    in_time: bool
    # Ready, and not out: may be asked first, or beside another. The others are a last resort.
    in_service: bool = True
    # Its part of the first requests; 0 for one that is only there for the case that others fail.
    weight: float = 0.0

    @property
    def node(self) -> str:
        return self.endpoint.node

    @property
    def site(self) -> str:
        return self.endpoint.candidate.site

    @property
    def forecast(self) -> Times:
        """The whole time of a small call."""
        return self.endpoint.candidate.total


def order(
    route: Route,
    *,
    measured: Mapping[str, Times],
    out: Collection[str] = (),
    slow: Mapping[str, float] | None = None,
    current: str | None = None,
) -> list[Choice]:
    """Every node of the route: those that requests were placed on, the others in service, those in `out`, the unready.

    Within each group the best by the rule is first. `measured` are this client's own network times by node, `slow` what
    nodes take that were far slower than forecast, in ms: out as well where others serve better. The last two groups are
    there because a call with nothing better to do may as well ask them: what is known may be old.
    """
    endpoints = {endpoint.node: endpoint for endpoint in route.endpoints}
    pool = [_with_own(endpoint.candidate, measured) for endpoint in route.endpoints]
    out = {*out, *_outdone([c for c in pool if c.ready and c.node not in out], slow or {})}
    serving = [c for c in pool if c.ready and c.node not in out]
    placed = [c for c in serving if c.share > 0]
    refuted = {c.node for c in placed if _refuted(c, endpoints[c.node].candidate, serving, endpoints, route)}
    groups: Sequence[list[routing.Candidate]] = (
        serving,
        [c for c in pool if c.ready and c.node in out],
        [c for c in pool if not c.ready],
    )
    found: list[Choice] = []
    for group in groups:
        for ranked in routing.rank(group, route.objective, route.deadline_ms, current=current):
            endpoint = dataclasses.replace(endpoints[ranked.candidate.node], candidate=ranked.candidate)
            weight = ranked.candidate.share if group is serving and endpoint.node not in refuted else 0.0
            why = _why(endpoint, ranked.why, weight, endpoint.node in refuted)
            found.append(Choice(endpoint, why, ranked.in_time, group is serving, weight))
    return sorted(found, key=lambda choice: not choice.weight)


def probed(route: Route, measured: Mapping[str, Times]) -> list[str]:
    """The nodes that are worth a probe now and then: those that calls go to, then those that would be next.

    For `nearest` those that may well be nearer than is known: by expected improvement (Jones, Schonlau, Welch 1998).
    """
    serving = [choice for choice in order(route, measured=measured) if choice.in_service]
    nearest_ms = min((choice.endpoint.candidate.network_ms_p50 for choice in serving), default=0.0)

    def worth(choice: Choice) -> tuple[float, float]:
        may_win = route.objective == "nearest"
        return choice.weight, choice.endpoint.candidate.network.gain_ms(nearest_ms) if may_win else 0.0

    return [choice.node for choice in sorted(serving, key=worth, reverse=True)][:MOST_PROBED]


def pick(choices: Sequence[Choice], cost: Callable[[Choice], float], chance: random.Random) -> Choice:
    """The first node of a call, of a non-empty order; `cost` is how long one more call would keep a node busy."""
    placed = list(takewhile(lambda choice: choice.weight > 0, choices))
    if len(placed) < 2:
        return choices[0]
    sites: dict[str, list[Choice]] = {}
    for choice in placed:
        sites.setdefault(choice.site, []).append(choice)
    nodes = _draw(list(sites.values()), [sum(c.weight for c in nodes) for nodes in sites.values()], chance)
    if len(nodes) == 1:
        return nodes[0]
    weights = [choice.weight for choice in nodes]
    one, other = _draw(nodes, weights, chance), _draw(nodes, weights, chance)
    return other if other is not one and cost(other) < cost(one) * (1 - BUSIER) else one


def beside(choices: Iterable[Choice], busy: Collection[str], sites: Collection[str]) -> Choice | None:
    """Whom to ask beside nodes that are asked already: the soonest of another site, else of the same.

    `busy` are the nodes that were asked, `sites` the sites that they are in. Of those as soon, the cheapest.
    """
    free = [choice for choice in choices if choice.in_service and choice.node not in busy]
    free = [choice for choice in free if choice.site not in sites] or free
    limit_ms = min((choice.forecast.p50_ms for choice in free), default=0.0) + AS_SOON_MS
    as_soon = [choice for choice in free if choice.forecast.p50_ms <= limit_ms]
    return min(
        as_soon, key=lambda choice: (choice.endpoint.candidate.usd_per_1000, choice.forecast.p50_ms), default=None
    )


def due_ms(late: Times, other: Times, aim_ms: float) -> float:
    """When a call that is late by its forecast is to be sent to the other node too, ms after its start.

    Not before the other one would have answered: far help for a near node is seldom in time. And as late as it may be
    for the other to answer by `aim_ms`, within bounds: most late calls are answered by then, and a copy less is paid.
    """
    last_ms = aim_ms - other.p95_ms
    if not math.isfinite(last_ms):
        return other.p50_ms
    hopeless = late.p95_ms > last_ms
    wait_ms = HOPELESS_P99S * late.p99_ms if hopeless else min(last_ms, MOST_PATIENT_P95S * late.p95_ms)
    return max(other.p50_ms, wait_ms)


def patience_s(candidate: routing.Candidate, request_bytes: int) -> float:
    """How long a call waits for this node alone before it takes it for frozen, and asks the next one as well."""
    p95_s = candidate.total_ms_p95 / 1000
    return max(PATIENCE_FACTOR * p95_s, PATIENCE_FLOOR_S + p95_s) + transfer_ms(candidate, request_bytes) / 1000


def hedge_s(candidate: routing.Candidate, request_bytes: int, correction: float) -> float:
    """After how long a call to this node is late enough for a second one; `correction` as own answers suggest."""
    expected_ms = candidate.total_ms_p95 + transfer_ms(candidate, request_bytes)
    return max(HEDGE_FLOOR_S, correction * expected_ms / 1000)


def forecast(candidate: routing.Candidate, request_bytes: int) -> Times:
    """The whole time of a call with a request of this size."""
    extra_ms = transfer_ms(candidate, request_bytes)
    return Times(tuple(ms + extra_ms for ms in candidate.total.ms)) if extra_ms else candidate.total


def transfer_ms(candidate: routing.Candidate, request_bytes: int) -> float:
    """Extra round trips of a large request while the windows of TCP and HTTP/2 open, doubling each time."""
    doublings = math.log2(max(1.0, request_bytes / FIRST_WINDOW_BYTES))
    return doublings * candidate.network_ms_p95


def _outdone(serving: Sequence[routing.Candidate], slow: Mapping[str, float]) -> list[str]:
    """Of the slow nodes those that another is sooner than, the slowest first, and at most half of all that serve."""
    soonest_ms = min((c.total.p50_ms for c in serving if c.node not in slow), default=math.inf)
    found = sorted((c.node for c in serving if slow.get(c.node, 0.0) > soonest_ms), key=lambda node: -slow[node])
    return found[: math.floor(MOST_SLOW * len(serving))]


def _refuted(
    placed: routing.Candidate,
    told: routing.Candidate,
    serving: Iterable[routing.Candidate],
    endpoints: Mapping[str, Endpoint],
    route: Route,
) -> bool:
    """Whether own round trips show another node to be the better one, where the region's did not.

    A placement goes by capacity as well; so that the control plane holds another node for better is no reason.
    """
    if route.objective == "cheapest" or placed is told:
        return False
    better = _nearer if route.objective == "nearest" else _likelier
    return any(
        better(c, placed, route.deadline_ms) and not better(endpoints[c.node].candidate, told, route.deadline_ms)
        for c in serving
    )


def _nearer(c: routing.Candidate, than: routing.Candidate, deadline_ms: float) -> bool:
    return nearer(c, than)


def _likelier(c: routing.Candidate, than: routing.Candidate, deadline_ms: float) -> bool:
    p = than.p_in_time(deadline_ms)
    return p < IN_TIME and c.p_in_time(deadline_ms) >= p + CLEARLY


def _why(endpoint: Endpoint, ranked: str, weight: float, refuted: bool) -> str:
    share = endpoint.candidate.share
    if weight:
        told = f"; {endpoint.told}" if endpoint.told else ""
        return f"placed here: share {share:.2g} of this region{told}"
    return f"share {share:.2g} of this region, but not by the round trips from here; {ranked}" if refuted else ranked


def _draw(items: Sequence[T], weights: Sequence[float], chance: random.Random) -> T:
    return items[0] if len(items) == 1 else chance.choices(items, weights)[0]


def _with_own(candidate: routing.Candidate, measured: Mapping[str, Times]) -> routing.Candidate:
    own = measured.get(candidate.node)
    return routing.with_network_times(candidate, own) if own else candidate


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
        transfer_usd_per_1000=message.transfer_usd_per_1000,
        spot=message.spot,
        unready_why="" if message.ready else message.why,
        # A control plane that sends two quantiles only is understood as well.
        network_times=Times.of(message.network_ms_quantiles),
        service_times=Times.of(message.service_ms_quantiles),
        share=message.share if 0 < message.share <= 1 else 0.0,
    )
    return Endpoint(candidate, message.address, message.server_name, message.why)
