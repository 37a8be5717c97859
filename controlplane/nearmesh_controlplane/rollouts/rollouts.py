"""Every rollout: kept on disk, gone on with by the leader, changed by operators.

What a rollout is at is on disk before any node is told of it. Who changes one names the revision that he saw, so the
leader's step and an operator's word, through whichever control plane, do not undo each other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Literal

import sqlalchemy as sa

from nearmesh.errors import InvalidInput, MeshError, NotFound
from nearmesh.rpc import Identity
from nearmesh.whole import whole
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Catalog, Deployment, Version, insert_deployment
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.rollouts import judge, machine, store
from nearmesh_controlplane.rollouts.evidence import Evidence, NodeEvidence
from nearmesh_controlplane.rollouts.placement import Candidate, placed
from nearmesh_controlplane.rollouts.rollout import Plan, Rollout
from nearmesh_controlplane.rollouts.scope import Scope
from nearmesh_controlplane.rollouts.watched import Watched, demand_by_region

log = logging.getLogger(__name__)

# Nodes report once a second, and at once when something changes.
LOOK_EVERY_S = 0.5
# Who is chosen for a version and is gone for so long is replaced. A machine that starts anew is back sooner, with its
# files; and a control plane that starts sees everybody gone for a moment.
REPLACE_AFTER_S = 30.0
# Somebody else may have changed a rollout meanwhile: looked at again, so often at most.
TRIES = 5

Change = Literal["pause", "resume", "abort"]
Demand = Callable[[], Mapping[tuple[str, str, str], float]]


@dataclasses.dataclass(slots=True)
class _Followed:
    """What this control plane has seen of a rollout that runs."""

    watched: Watched
    evidence: Evidence


class Rollouts:
    """Reads from memory; every change is on disk before it is seen."""

    def __init__(
        self,
        db: Database,
        changes: Generation,
        registry: Registry,
        catalog: Catalog,
        audit: Audit,
        demand: Demand,
        *,
        name: str = "control-plane",
        leads: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`name` stands in the audit log for what this control plane does by itself; `demand` is by client region,
        model and objective."""
        self._db = db
        self._changes = changes
        self._registry = registry
        self._catalog = catalog
        self._audit = audit
        self._demand = demand
        self._self = Identity(name, "control-plane")
        self.leads = leads
        self._clock = clock
        self._wall = wall
        self._rollouts: dict[int, Rollout] = {}
        self._followed: dict[int, _Followed] = {}
        # Of nodes that were chosen for something: when each was there last.
        self._there: dict[str, float] = {}

    async def restore(self) -> None:
        """Reads the durable state: at the start, and when another control plane wrote some of it."""
        self._rollouts = {rollout.id: rollout for rollout in await self._db.run(store.read_all)}
        self._changes.bump()

    # What is asked

    def all(self, model: str = "") -> list[Rollout]:
        """Newest first."""
        return [r for r in sorted(self._rollouts.values(), key=lambda r: -r.id) if model in ("", r.model)]

    def running(self) -> list[Rollout]:
        """Those that have not ended: what nodes should have goes by them."""
        return [rollout for rollout in self._rollouts.values() if not rollout.ended]

    def active(self, model: str) -> Rollout | None:
        return next((rollout for rollout in self.running() if rollout.model == model), None)

    async def begun(self, model: str) -> Rollout | None:
        """As `active`, also one that was begun through another control plane a moment ago."""
        if self._db.shared:
            await self.restore()
        return self.active(model)

    def get(self, model: str, id: int = 0) -> Rollout:
        """The newest, or that one. Raises NotFound."""
        self._catalog.versions(model)
        found = self.all(model)
        for rollout in found:
            if id in (0, rollout.id):
                return rollout
        known = f"there are {', '.join(str(r.id) for r in found)}" if found else "none was ever begun"
        raise NotFound(f"no rollout {id} of {model!r}; {known}" if id else f"no rollout of {model!r}; {known}")

    def evidence(self, rollout: Rollout) -> list[NodeEvidence]:
        """What its nodes say, and have counted since its step began as far as this control plane has heard."""
        if rollout.ended:
            return []
        followed = self._follow(rollout)
        return followed.evidence.nodes(followed.watched.views(rollout))

    # What changes

    @whole
    async def start(self, version: Version, scope: Scope, plan: Plan, actor: Identity) -> Rollout:
        """Raises AlreadyExists while another rollout of the model runs, NotFound where no node may have it."""
        now_s = self._wall()
        begun = Rollout(
            id=0,
            model=version.model,
            version=version.version,
            digest=version.digest,
            scope=scope,
            plan=plan,
            actor=str(actor),
            created_at_s=now_s,
            since_s=now_s,
            phase="loading" if plan.strategy == "canary" else "rolling",
            placed=self.place(version.model, version.digest, scope),
        )
        rollout = await self._db.run(store.insert, begun)
        self._know(rollout)
        await self._audit.record(actor, "deploy", rollout.name, f"{scope}, {plan.strategy}, rollout {rollout.id}")
        return rollout

    @whole
    async def change(self, model: str, change: Change, actor: Identity) -> Rollout:
        """Raises NotFound where none runs, InvalidInput where that cannot be done now."""
        if self._db.shared:
            await self.restore()
        for _ in range(TRIES):
            rollout = self.active(model)
            if rollout is None:
                raise NotFound(
                    f"no rollout of {model!r} runs; `nearmesh model rollout list` shows those that have ended"
                )
            wanted = self._changed(rollout, change, str(actor))
            if wanted is rollout:
                return rollout
            after = await self._db.run(store.update, wanted)
            if after is not None:
                self._know(after)
                await self._audit.record(actor, f"rollout {change}", rollout.name, f"rollout {rollout.id}")
                return after
            await self.restore()
        raise InvalidInput(f"the rollout of {model!r} is being changed by others all the time; try again")

    def _changed(self, rollout: Rollout, change: Change, actor: str) -> Rollout:
        if change == "pause":
            return machine.paused(rollout)
        if change == "resume":
            return machine.resumed(rollout, self._wall())
        return machine.aborted(rollout, actor, self._wall())

    def place(self, model: str, digest: str, scope: Scope, kept: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The nodes that get a version of which so many replicas are wanted; none where all get it.

        Raises NotFound where there are not as many nodes.
        """
        if not scope.replicas:
            return ()
        found = self._placed(model, digest, scope, kept or self._had(model))
        if len(found) < scope.replicas:
            raise NotFound(
                f"{scope.replicas} replicas of {model!r} are wanted, and {len(found)} nodes of "
                f"{dataclasses.replace(scope, replicas=0)} may have it; `nearmesh node list` shows who is there"
            )
        return found

    def _placed(self, model: str, digest: str, scope: Scope, kept: tuple[str, ...]) -> tuple[str, ...]:
        candidates = [
            Candidate(node=node.id, site=node.site, region=node.region, usd_per_hour=node.usd_per_hour)
            for node in self._registry.serving_nodes()
            if scope.covers(node.site, node.region) and self._may_have(node, digest, node.id in kept)
        ]
        return placed(scope.replicas, candidates, demand_by_region(model, self._demand()), kept)

    def _had(self, model: str) -> tuple[str, ...]:
        """Those that were chosen before stay chosen."""
        deployments = self._catalog.deployments(model)
        return deployments[0].nodes if deployments else ()

    def _may_have(self, node: Node, digest: str, chosen: bool) -> bool:
        if node.cordoned or self._registry.leaving(node.id):
            return False
        if self._registry.presence(node.id) == "gone":
            return chosen and self._clock() - self._there.get(node.id, self._clock()) < REPLACE_AFTER_S
        # What fails on a chosen node is the judge's to see.
        status = None if chosen else self._registry.replicas(node.id).get(digest)
        return status is None or status.state != judge.FAILED

    # What the leader does

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except MeshError as error:
                log.warning("rollouts were not gone on with: %s", error.message)

    async def look(self) -> None:
        """One step of every rollout, where this control plane leads."""
        if not self.leads():
            self._followed, self._there = {}, {}
            return
        for node in self._registry.serving_nodes():
            if self._registry.presence(node.id) != "gone" or node.id not in self._there:
                self._there[node.id] = self._clock()
        for rollout in self.running():
            await self._go_on(rollout)
        await self._repair()
        running = {rollout.id for rollout in self.running()}
        self._followed = {id: followed for id, followed in self._followed.items() if id in running}

    async def _go_on(self, rollout: Rollout) -> None:
        followed = self._follow(rollout)
        views = followed.watched.views(rollout)
        followed.evidence.observe((rollout.phase, rollout.step, rollout.scout), views, judge.slow_nodes(rollout, views))
        nodes = followed.evidence.nodes(views)
        look = machine.Look(
            now_s=self._wall(),
            breach=judge.breach(rollout, nodes),
            requests=judge.requests(nodes),
            asked=judge.asked(nodes),
        )
        after = machine.advanced(self._replaced(rollout), views, look)
        if after is not rollout:
            await self._write(rollout, after)

    def _replaced(self, rollout: Rollout) -> Rollout:
        """With others in the place of chosen nodes that are gone."""
        if not rollout.scope.replicas or rollout.state != "running":
            return rollout
        found = self._placed(rollout.model, rollout.digest, rollout.scope, rollout.placed)
        return rollout if found == rollout.placed else dataclasses.replace(rollout, placed=found)

    @whole
    async def _write(self, before: Rollout, after: Rollout) -> None:
        written = await self._db.run_as_leader(_write, after, self._catalog.version(after.model, after.version))
        if written is None:
            await self.restore()
            return
        rollout, deployment = written
        # Both at once: no node is told of what was in between.
        if deployment is not None:
            self._catalog.take(deployment)
        self._know(rollout)
        if rollout.state != before.state:
            log.info("rollout id=%d of=%s is %s: %s", rollout.id, rollout.name, rollout.state, rollout.reason)
            await self._audit.record(self._self, f"rollout {rollout.state}", rollout.name, rollout.reason)
        else:
            log.info(
                "rollout id=%d of=%s phase=%s step=%d changed=%d changing=%s",
                rollout.id,
                rollout.name,
                rollout.phase,
                rollout.step,
                len(rollout.changed),
                ",".join(rollout.changing),
            )

    async def _repair(self) -> None:
        """Versions of which so many replicas are wanted have so many, also when a node has left."""
        places = {(node.site, node.region) for node in self._registry.serving_nodes()}
        for deployment in self._catalog.choosing(places).values():
            if self.active(deployment.model):
                continue
            found = self._placed(deployment.model, deployment.digest, deployment.scope, deployment.nodes)
            if set(found) - set(deployment.nodes):
                log.info("placed anew model=%s nodes=%s before=%s", deployment.model, found, deployment.nodes)
                await self._catalog.place(deployment, found)

    def _follow(self, rollout: Rollout) -> _Followed:
        found = self._followed.get(rollout.id)
        if found is None:
            watched = Watched(self._registry, self._catalog, self._clock)
            found = self._followed[rollout.id] = _Followed(watched, Evidence())
        return found

    def _know(self, rollout: Rollout) -> None:
        known = self._rollouts.get(rollout.id)
        # What was read meanwhile may be newer.
        if known is None or known.revision <= rollout.revision:
            self._rollouts[rollout.id] = rollout
        self._changes.bump()


def _write(connection: sa.Connection, rollout: Rollout, version: Version) -> tuple[Rollout, Deployment | None] | None:
    """A rollout that is done makes its version the wanted one, in the same transaction."""
    after = store.update(connection, rollout)
    if after is None:
        return None
    if after.state != "done":
        return after, None
    return after, insert_deployment(
        connection, version, after.scope, after.placed, after.actor, after.ended_at_s, after.id
    )
