"""Gives models up that nobody asks for, and brings them back: what the leader does once a second, and for a request."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from nearmesh.errors import MeshError
from nearmesh.rpc import Identity
from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.idle import decision
from nearmesh_controlplane.idle.book import IdleBook
from nearmesh_controlplane.idle.decision import Look, Place
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import READY, Registry
from nearmesh_controlplane.routing.measurements import Measurements
from nearmesh_controlplane.routing.replicas import MAX_MS
from nearmesh_controlplane.routing.residency import ResidencyRules
from nearmesh_controlplane.routing.router import Router

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
# After a start, and after it became the leader, a control plane has not heard of everybody yet.
SETTLED_AFTER_S = 10.0
# Who keeps a model and is gone for so long is replaced: a machine that starts anew is back sooner, with its files.
REPLACE_AFTER_S = 30.0
# A node that was asked to keep a version and could not load it is not asked again for so long.
SHUNNED_S = 600.0
# Nodes times models that are looked at in one go: of a large mesh the others have their turn a second later.
MOST_PLACES = 20_000
# A node that was to be ready by now is, any moment.
LEAST_MS = 100.0

_NOTHING = pb.ReplicaStatus()
_BUSY = (pb.REPLICA_STATE_PULLING, pb.REPLICA_STATE_LOADING)


class Scaler:
    """Reads from memory; what it decides is on disk before nodes hear of it."""

    def __init__(
        self,
        book: IdleBook,
        registry: Registry,
        catalog: Catalog,
        measurements: Measurements,
        residency: ResidencyRules,
        router: Router,
        audit: Audit,
        rolling: Callable[[str], bool],
        *,
        name: str = "control-plane",
        leads: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`rolling` says of a model whether a rollout of it runs; `name` stands in the audit log."""
        self._book = book
        self._registry = registry
        self._catalog = catalog
        self._measurements = measurements
        self._residency = residency
        self._router = router
        self._audit = audit
        self._rolling = rolling
        self._self = Identity(name, "control-plane")
        self.leads = leads
        self._clock = clock
        self._wall = wall
        self._led_s = math.inf
        # When each node was there last, what each took to load each version, and when each is to have it for a request.
        self._there: dict[str, float] = {}
        self._load_ms: dict[tuple[str, str], float] = {}
        self._ready_s: dict[tuple[str, str], float] = {}
        # Since when each has failed at each version, and until when it is not asked to keep it.
        self._failing_s: dict[tuple[str, str], float] = {}
        self._shunned_s: dict[tuple[str, str], float] = {}
        # What is decided for a client is not decided by the way as well.
        self._one_at_a_time = asyncio.Lock()
        # When a client last asked for each model that nobody had.
        self._asked_s: dict[str, float] = {}
        # Of the models that are looked at, the last one.
        self._last = ""

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except MeshError as error:
                log.warning("models that nobody asks for were not looked at: %s", error.message)

    async def look(self) -> None:
        """One decision for each model, where this control plane leads."""
        if not self.leads():
            self._led_s = math.inf
            self._there.clear()
            return
        now_s = self._clock()
        self._led_s = min(self._led_s, now_s)
        nodes = self._registry.serving_nodes()
        for node in nodes:
            if self._registry.presence(node.id) != "gone" or node.id not in self._there:
                self._there[node.id] = now_s
        self._book.tick()
        for model in self._turn(max(1, MOST_PLACES // max(1, len(nodes)))):
            async with self._one_at_a_time:
                await self._decide(model)

    def _turn(self, most: int) -> list[str]:
        """The models to look at now; of one that is awake and in demand there is nothing to decide."""
        now_s, demand = self._clock(), self._measurements.demand
        models = [
            model
            for model in self._book.models()
            if self._book.kept(model) is not None or demand.total(model, now_s=now_s) < decision.SILENT_PER_S
        ]
        if len(models) > most:
            models = ([m for m in models if m > self._last] + [m for m in models if m <= self._last])[:most]
            self._last = models[-1]
        return models

    async def ask(self, model: str, region: str) -> float:
        """For a client that found nobody who has the model: brings it back where it is ready soonest.

        In how many milliseconds; 0 where the model is not asleep, or no node may answer the client.
        """
        if self._book.kept(model) is None:
            return 0.0
        async with self._one_at_a_time:
            return await self._asked(model, region)

    async def _asked(self, model: str, region: str) -> float:
        kept = self._book.kept(model)
        if kept is None or not self.leads():
            return 0.0
        rule, now_s = self._router.may_answer(model, region), self._clock()
        places = [p for p in self._places(model, region) if (rule is None or p.region in rule) and not p.failing]
        if not places:
            return 0.0
        self._asked_s[model] = now_s
        coming = [place for place in places if place.node in kept]
        if coming:
            return min(self._left_ms(model, place, now_s) for place in coming)
        chosen = decision.soonest(places)[0]
        takes_ms = decision.ready_ms(chosen)
        self._ready_s[model, chosen.node] = now_s + takes_ms / 1000
        log.info("brought back model=%s node=%s region=%s ms=%.0f", model, chosen.node, region, takes_ms)
        await self._book.sleep(model, tuple(sorted({*kept, chosen.node})))
        await self._audit.record(self._self, "bring back", model, f"to {chosen.node}, for a client in {region}")
        return max(takes_ms, LEAST_MS)

    def _left_ms(self, model: str, place: Place, now_s: float) -> float:
        if place.ready:
            self._ready_s.pop((model, place.node), None)
            return LEAST_MS
        until_s = self._ready_s.setdefault((model, place.node), now_s + decision.ready_ms(place) / 1000)
        return max(1000 * (until_s - now_s), LEAST_MS)

    async def _decide(self, model: str) -> None:
        entry, kept, now_s = self._book.entry(model), self._book.kept(model), self._clock()
        look = Look(
            policy=entry.policy,
            places=self._places(model),
            kept=None if kept is None else tuple(sorted(kept)),
            awake_s=self._awake_s(model, entry.since_s),
            per_s=self._measurements.demand.total(model, now_s=now_s),
            asked_s=now_s - self._asked_s.get(model, -math.inf),
            rolling=self._rolling(model),
            bound=tuple(regions for _, regions in self._residency.all()),
        )
        found = decision.decided(look)
        if found == look.kept:
            return
        if found is None:
            log.info("awake model=%s demand_per_s=%.3g", model, look.per_s)
            await self._book.wake(model)
            await self._audit.record(self._self, "wake", model, "its replicas come back to all that it is deployed to")
            return
        names = ", ".join(found) or "no node"
        log.info("asleep model=%s kept_by=%s before=%s", model, names, look.kept)
        await self._book.sleep(model, found)
        await self._audit.record(self._self, "sleep", model, f"kept by {names}")

    def _awake_s(self, model: str, since_s: float) -> float:
        if self._clock() - self._led_s < SETTLED_AFTER_S:
            return 0.0
        newest = next(iter(self._catalog.deployments(model)), None)
        return self._wall() - max(since_s, newest.created_at_s if newest else 0.0)

    def _places(self, model: str, region: str = "") -> list[Place]:
        found, regions = [], self._catalog.policy(model).regions
        for node in self._registry.serving_nodes():
            if regions and node.region not in regions:
                continue
            deployed = self._catalog.deployed(model, node.site, node.region, node.id)
            if deployed is not None and self._stays(node):
                found.append(self._place(model, node, deployed.digest, region))
        return found

    def _stays(self, node: Node) -> bool:
        if node.cordoned or self._registry.leaving(node.id):
            return False
        if self._registry.presence(node.id) != "gone":
            return True
        return self._clock() - self._there.get(node.id, -math.inf) < REPLACE_AFTER_S

    def _place(self, model: str, node: Node, digest: str, region: str) -> Place:
        own = self._registry.replicas(node.id).get(digest, _NOTHING)
        live = self._registry.presence(node.id) == "live"
        failing = own.state == pb.REPLICA_STATE_FAILED
        if 0 < own.load_ms <= MAX_MS:
            self._load_ms[node.id, digest] = own.load_ms
        return Place(
            node=node.id,
            region=node.region,
            usd_per_hour=node.usd_per_hour,
            ready=own.state == READY and live,
            busy=own.state in _BUSY,
            failing=failing,
            broken=self._broken((node.id, digest), failing=failing),
            held=digest in self._registry.held(node.id),
            cold=own.cold,
            load_ms=self._load_ms.get((node.id, digest), 0.0),
            size_bytes=self._catalog.version(model, self._catalog.version_of(digest)).size_bytes,
            network_ms=self._router.network_time(region, node).p50_ms if region else 0.0,
            idle_s=own.idle_s,
            waiting=own.waiting,
            in_flight=own.in_flight,
        )

    def _broken(self, replica: tuple[str, str], *, failing: bool) -> bool:
        """It has failed for long, or did lately: others keep the version, as long as there are any."""
        now_s = self._clock()
        if not failing:
            self._failing_s.pop(replica, None)
        elif now_s - self._failing_s.setdefault(replica, now_s) >= REPLACE_AFTER_S:
            self._shunned_s[replica] = now_s + SHUNNED_S
        return now_s < self._shunned_s.get(replica, -math.inf)
