"""The present routes: facts in, a plan of all of them, and from it decisions with reasons and the tables of xDS.

Everything is planned anew after a change and kept until the next one: asking is cheap, and who asks why hears the
decision that gateways and clients were given, not one of a moment later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nearmesh.ids import node_server_name
from nearmesh.routing import OBJECTIVES, Objective, Ranked, parse_objective
from nearmesh.routing.table import Listener, RouteTable
from nearmesh.snapshot import SnapshotRoutes
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.config import EndpointOverride
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.routing.facts import Facts, NodeFacts
from nearmesh_controlplane.routing.gather import Gatherer
from nearmesh_controlplane.routing.latency import NetworkTime
from nearmesh_controlplane.routing.planner import Plan, Planner
from nearmesh_controlplane.routing.reasons import verdicts
from nearmesh_controlplane.routing.tables import Tables

log = logging.getLogger(__name__)

# Clients say which region they are in; so many are planned for beside those of machines. Whoever comes after them is
# placed as if nobody knew where that is, until one has not been asked for so long; but never past a rule of residency:
# those regions are planned for however many there are.
MAX_ASKED_REGIONS = 64
ASKED_FOR_S = 600.0
ELSEWHERE = "elsewhere"
# Decisions that are remembered: with every node of the mesh in it, each is of some size.
MAX_DECISIONS = 1000
# Of the time, at most one part in so many goes into plans for measurements that merely drifted.
DRIFT_PARTS = 20
# While traffic is on its way, plans follow each other this closely.
MOVING_S = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The ranking of one model for one client region, and what it was decided by."""

    model: str
    region: str
    objective: Objective
    deadline_ms: float
    ranking: tuple[Ranked, ...]
    # Which plan it is of; it grows.
    generation: int
    # Requests per second that were placed.
    demand_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan, the change that it followed, and when and how long it was worked on."""

    plan: Plan
    generation: int
    at_s: float
    took_s: float


@dataclass(slots=True)
class Work:
    """What planning came to, since the start and in the latest plan."""

    plans: int = 0
    seconds: float = 0.0
    # Linear programs solved, and plans for which there was no optimum, or no time to find it.
    programs: int = 0
    given_up: int = 0
    latest_s: float = 0.0
    unplaced_per_s: float = 0.0
    moving: bool = False

    def add(self, plan: Plan, took_s: float) -> None:
        self.plans += 1
        self.seconds += took_s
        self.programs += plan.rounds
        self.given_up += plan.given_up
        self.latest_s, self.unplaced_per_s, self.moving = took_s, plan.unplaced_per_s, plan.moving


class Router:
    """Implements `RouteSource` for xDS."""

    def __init__(
        self,
        mesh: str,
        registry: Registry,
        catalog: Catalog,
        gatherer: Gatherer,
        changes: Generation,
        overrides: Iterable[EndpointOverride],
        clock: Callable[[], float],
    ) -> None:
        self._mesh = mesh
        self._registry = registry
        self._catalog = catalog
        self._gatherer = gatherer
        self._changes = changes
        self._overrides = {(o.client_region, o.node, o.listener): o.address for o in overrides}
        self._clock = clock
        self._planner = Planner()
        self._tables = Tables(lambda region, node, listener: self.address(region, registry.get(node), listener))
        self._planned: _Planned | None = None
        self.work = Work()
        # When each was asked for last.
        self._asked: dict[str, float] = {}
        self._made: dict[tuple[str, Listener], tuple[int, RouteTable]] = {}
        self._decisions: dict[tuple[str, str, str], Decision] = {}

    # What is asked

    async def changed(self, after: int) -> int:
        return await self._changes.above(after)

    def table(self, region: str, listener: Listener) -> RouteTable:
        planned = self._present(region)
        known = self._made.get((region, listener))
        if known is None or known[0] != planned.generation:
            row = self._row(planned.plan, region)
            nearest = self._nearest(planned.plan, row)
            made = self._tables.table(planned.plan, region, listener, placed_as=row, nearest=nearest)
            known = (planned.generation, made)
            if len(self._made) >= 4 * MAX_ASKED_REGIONS:
                self._made.clear()
            self._made[region, listener] = known
        return known[1]

    def decide(self, model: str, region: str, objective: Objective | None = None) -> Decision:
        """Every node of the mesh, ranked for `model`; those that cannot serve stand last. Raises NotFound."""
        self._catalog.versions(model)
        planned = self._present(region)
        key = (model, region, objective or self._catalog.policy(model).objective)
        known = self._decisions.get(key)
        if known is None or known.generation != planned.generation:
            known = self._decisions[key] = self._decide(planned, *key)
            if len(self._decisions) > MAX_DECISIONS:
                del self._decisions[next(iter(self._decisions))]
        return known

    def best(self, model: str, region: str, objective: Objective, most: int) -> tuple[Ranked, ...]:
        """The first `most` nodes of a decision that may answer; less work than all of it, and not remembered."""
        self._catalog.versions(model)
        return self._decide(self._present(region), model, region, objective, best=most).ranking

    def may_answer(self, model: str, region: str) -> frozenset[str] | None:
        """The regions that may answer a client region's calls of a model; None: any."""
        return self._gatherer.may_answer(model, region)

    def may_answer_at_all(self, region: str) -> frozenset[str] | None:
        """The same for calls that name no model."""
        return self._gatherer.may_answer_at_all(region)

    def address(self, region: str, node: Node, listener: Listener) -> str:
        """Where clients of `region` reach the node."""
        own = node.public_address if listener == "public" else node.mesh_address
        return self._overrides.get((region, node.id, listener), own)

    def server_name(self, node: str) -> str:
        return node_server_name(self._mesh, node)

    def network_time(self, region: str, node: Node) -> NetworkTime:
        """The round trip between a client region and a node, and who says so."""
        return NetworkTime(*self._gatherer.network(region, node))

    def speed(self, model: str, node: str) -> float:
        """Inferences per second that the present plan reckons with; 0 where the node does not serve the model."""
        found = next((facts for facts in self.plan.facts.models if facts.name == model), None)
        return found.replicas[node].per_s if found and node in found.replicas else 0.0

    @property
    def plan(self) -> Plan:
        """The present one."""
        return self._present("").plan

    # What changes

    def tick(self) -> None:
        """Now and then: counts what has drifted as a change, if planning is not too much work for that."""
        planned = self._planned
        if planned is None:
            self._changes.tick()
            return
        age_s = self._clock() - planned.at_s
        if planned.plan.moving and age_s >= MOVING_S:
            self._changes.drift()
        if age_s >= DRIFT_PARTS * planned.took_s:
            self._changes.tick()

    def _decide(
        self, planned: _Planned, model: str, region: str, wanted: Objective, best: int | None = None
    ) -> Decision:
        plan, row = planned.plan, self._row(planned.plan, region)
        facts = next(found for found in plan.facts.models if found.name == model)
        measured: dict[str, bool] = {}
        if best is None:
            nodes = map(self._registry.get, (node.id for node in plan.facts.nodes))
            measured = {node.id: self.network_time(row, node).measured for node in nodes}
        found = verdicts(plan, facts, plan.blocks.get((model, wanted)), row, measured, best)
        return Decision(
            model=model,
            region=region,
            objective=wanted,
            deadline_ms=facts.deadline_ms,
            ranking=found.ranking,
            generation=planned.generation,
            demand_per_s=plan.facts.demand.get((row, model, wanted), 0.0),
        )

    def resume(self, routes: SnapshotRoutes) -> None:
        """Goes on from what another control plane decided."""
        held = {(r, m, parse_objective(o)): shares for (r, m, o), shares in routes.shares().items()}
        self._planner.resume(held, self._clock())
        self._changes.bump()

    def _present(self, region: str) -> _Planned:
        known = self._planned
        new = bool(region) and self._ask(region)
        if new and known is not None:
            # With one region more it is another plan, for everybody: whoever was given the last one is to hear of it.
            self._changes.bump()
        if known is None or known.generation != self._changes.value:
            known = self._planned = self._make()
        return known

    def _ask(self, region: str) -> bool:
        """Whether the region is one that no plan knows yet and that has room in the next one."""
        now_s, facts = self._clock(), self._planned.plan.facts if self._planned else None
        if region in self._asked:
            self._asked[region] = now_s
            return False
        if self._planned and region in self._planned.plan.regions:
            return False
        if len(self._asked) >= MAX_ASKED_REGIONS:
            self._asked = {name: at_s for name, at_s in self._asked.items() if now_s - at_s < ASKED_FOR_S}
        bound = facts is not None and facts.residency(region) is not None
        if len(self._asked) >= MAX_ASKED_REGIONS and not bound:
            return False
        self._asked[region] = now_s
        return True

    def _row(self, plan: Plan, region: str) -> str:
        return region if region in plan.regions else ELSEWHERE

    def _make(self) -> _Planned:
        generation, began_s, began_cpu_s = self._changes.value, time.perf_counter(), time.thread_time()
        facts = self._gatherer.facts([*self._asked, ELSEWHERE])
        also = [(ELSEWHERE, model.name, parse_objective(o)) for model in facts.models for o in OBJECTIVES]
        plan = self._planner.plan(facts, self._clock(), also)
        took_s = time.perf_counter() - began_s
        self._forget(facts)
        self.work.add(plan, took_s)
        log.debug(
            "decided generation=%d nodes=%d models=%d regions=%d ms=%.1f cpu_ms=%.1f "
            "programs=%d moving=%s unplaced_per_s=%.3g",
            generation,
            len(facts.nodes),
            len(facts.models),
            len(facts.regions),
            1000 * took_s,
            1000 * (time.thread_time() - began_cpu_s),
            plan.rounds,
            plan.moving,
            plan.unplaced_per_s,
        )
        return _Planned(plan, generation, self._clock(), took_s)

    def _forget(self, facts: Facts) -> None:
        machines = {node.region for node in self._registry.all() if not node.removed}
        for region in machines & self._asked.keys():
            del self._asked[region]
        self._tables.forget({*facts.regions, *(region for region, _ in self._made)}, {m.name for m in facts.models})

    def _nearest(self, plan: Plan, region: str) -> list[NodeFacts]:
        """For calls that name no model: live nodes that stay and may answer the region, the nearest first."""
        rule = plan.facts.residency(region)
        bound = [node for node in plan.facts.nodes if rule is None or node.region in rule]
        staying = [node for node in bound if not self._registry.leaving(node.id)]
        up = [node for node in staying if node.standing != "gone"] or staying
        network = plan.facts.network
        return sorted(up, key=lambda node: (node.standing != "live", network[region, node.id].p50_ms, node.id))
