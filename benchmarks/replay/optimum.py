"""The clairvoyant optimum: the least that a day can cost when all of its future is known.

For each interval the same linear program as the planner's own, but given what really comes: the demand to the request,
the prices, which spot machines are there and for how long, and the true distributions of times. Which pairs are in
time, and how much a node may carry, is worked out by the planner's own code from these. Nothing is kept from one
interval to the next, so no hysteresis, no ramp and no error of a measurement costs it anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import highspy
import numpy as np
import numpy.typing as npt
from nearmesh_controlplane.routing.facts import Facts, ModelFacts, NodeFacts, ReplicaFacts
from nearmesh_controlplane.routing.offers import OfferBook

from benchmarks.replay.world import Array, World
from nearmesh.routing.objectives import IN_TIME
from nearmesh.routing.times import LEVELS, Times

# A request that waits for another interval's capacity is late, so intervals are short.
INTERVAL_S = 1.0
_TRIALS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """Of a whole day."""

    usd: float
    # The share of requests that no allowed node had room for; they are charged at the cheapest node that is there.
    unplaced: float
    # The largest share of requests in time that any routing could reach: each alone on the node that suits it best.
    in_time: float


def optimum(world: World, interval_s: float = INTERVAL_S) -> Optimum:
    """Solves every interval of the day."""
    allowed, utilization = truly_allowed(world)
    chance = chances(world)
    program = Transport(allowed)
    edges = np.arange(0.0, world.duration_s + interval_s, interval_s)
    demand = _demand(world, edges)
    usd = unplaced = reached = 0.0
    for step, start_s in enumerate(edges[:-1]):
        share = _presence(world, start_s, edges[step + 1])
        price = _mean_price(world, start_s, edges[step + 1])
        flow, left = program.solve(price, demand[step], share * world.per_second * utilization * interval_s)
        usd += float((flow * price).sum() + left.sum() * price[share > 0].min())
        unplaced += float(left.sum())
        reached += float(demand[step] @ np.where(share > 0, chance, 0.0).max(axis=1))
    total = max(1, len(world.arrival_s))
    return Optimum(usd=usd, unplaced=unplaced / total, in_time=reached / total)


def truly_allowed(world: World) -> tuple[npt.NDArray[np.bool_], Array]:
    """Which pairs are in time at the utilization that each node may have, and that utilization; by the true times."""
    network = {
        (region, node.id): Times(tuple(np.quantile(trips, LEVELS).tolist()))
        for column, node in enumerate(world.nodes)
        for region, trips in zip(world.regions, _trips(world, column), strict=True)
    }
    nodes = tuple(
        NodeFacts(id=n.id, site=n.id, region=world.regions[n.region], usd_per_hour=1.0, spot=n.spot)
        for n in world.nodes
    )
    replicas = {
        n.id: ReplicaFacts(
            service=Times.spread(n.hardware.service_ms_p50, n.hardware.service_ms_p95), per_s=n.per_second
        )
        for n in world.nodes
    }
    model = ModelFacts(name="model", objective="cheapest-in-time", deadline_ms=world.deadline_ms, replicas=replicas)
    facts = Facts(nodes=nodes, models=(model,), regions=world.regions, network=network)
    # Enough is asked to fill any node.
    offers = OfferBook().offers(facts, model, dict.fromkeys(replicas, 1.0))
    assert offers is not None
    return offers.p_in_time >= IN_TIME, offers.utilization


def chances(world: World) -> Array:
    """For each region and node, the share of requests that are in time when none has to wait."""
    found = np.zeros(world.mean_ms.shape)
    rng = np.random.default_rng(0)
    for column, node in enumerate(world.nodes):
        work = node.hardware.service_ms_p50 * np.exp(node.hardware.sigma * rng.standard_normal(_TRIALS))
        found[:, column] = (_trips(world, column) + work <= world.deadline_ms).mean(axis=1)
    return found


def _trips(world: World, node: int) -> Array:
    """Round trips from every region as the simulation draws them, milliseconds; shape (regions, trials)."""
    jitter = np.random.default_rng(node + 1).exponential(size=_TRIALS) - 1.0
    trips = world.mean_ms[:, [node]] + world.deviation_ms[:, [node]] * jitter
    found: Array = np.maximum(trips, world.least_ms[:, [node]])
    return found


class Transport:
    """A transportation problem over the allowed pairs, solved again and again from where the last solution was."""

    def __init__(self, allowed: npt.NDArray[np.bool_]) -> None:
        self._region, self._node = np.nonzero(allowed)
        self._regions, self._nodes = allowed.shape
        pairs = len(self._region)
        # Columns: the pairs, and for each region what is left over. Rows: the regions' demand, the nodes' capacity.
        self._columns = np.arange(pairs + self._regions, dtype=np.int32)
        self._rows = np.arange(self._regions + self._nodes, dtype=np.int32)
        rows = np.concatenate([np.stack([self._region, self._regions + self._node], axis=1).ravel(), self._rows])
        starts = np.concatenate([np.arange(pairs) * 2, 2 * pairs + np.arange(self._regions)])
        self._solver = highspy.Highs()
        self._solver.silent()
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = len(self._columns), len(self._rows)
        model.col_cost_ = np.zeros(len(self._columns))
        model.col_lower_ = np.zeros(len(self._columns))
        model.col_upper_ = np.full(len(self._columns), math.inf)
        model.row_lower_ = np.zeros(len(self._rows))
        model.row_upper_ = np.zeros(len(self._rows))
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = np.append(starts, 2 * pairs + self._regions)
        model.a_matrix_.index_ = rows[: 2 * pairs + self._regions]
        model.a_matrix_.value_ = np.ones(2 * pairs + self._regions)
        self._solver.passModel(model)

    def solve(self, price: Array, demand: Array, capacity: Array) -> tuple[Array, Array]:
        """The cheapest flow, shape (regions, nodes), and what of each region's demand found no room."""
        # To leave a request over is worse than any node, but never so bad that the numbers become unsound.
        scale = 1.0 / max(float(price.max()), 1e-12)
        cost = np.concatenate([price[self._node] * scale, np.full(self._regions, 10.0)])
        self._solver.changeColsCost(len(cost), self._columns, cost)
        lower = np.concatenate([demand, np.zeros(self._nodes)])
        upper = np.concatenate([demand, capacity])
        self._solver.changeRowsBounds(len(self._rows), self._rows, lower, upper)
        self._solver.run()
        values = np.array(self._solver.getSolution().col_value)
        flow = np.zeros((self._regions, self._nodes))
        flow[self._region, self._node] = values[: len(self._region)]
        return flow, values[len(self._region) :]


def _demand(world: World, edges: Array) -> Array:
    """Requests by interval and region."""
    step = np.searchsorted(edges, world.arrival_s, side="right") - 1
    found = np.zeros((len(edges) - 1, len(world.regions)))
    np.add.at(found, (step, world.arrival_region), 1.0)
    return found


def _presence(world: World, start_s: float, end_s: float) -> Array:
    """For which share of the interval each node takes requests."""
    away = np.zeros(len(world.nodes))
    for gone in world.absences:
        away[gone.node] += max(0.0, min(end_s, gone.on_s) - max(start_s, gone.notice_s))
    return np.clip(1.0 - away / (end_s - start_s), 0.0, 1.0)


def _mean_price(world: World, start_s: float, end_s: float) -> Array:
    """What one inference costs on each node, on average over the interval."""
    edges = np.clip(np.append(world.price_since_s, np.inf), start_s, end_s)
    return np.diff(edges) @ world.usd_per_request / (end_s - start_s)
