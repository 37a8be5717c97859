"""The calls of the catalog that deploy, and that watch and change rollouts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from nearmesh.errors import AlreadyExists, InvalidInput, NotFound
from nearmesh.rpc import caller
from nearmesh.v1 import catalog_pb2 as pb
from nearmesh.v1.node_pb2 import ReplicaStatus
from nearmesh.whole import whole
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.catalog.catalog import Catalog, Deployment, Version
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.rollouts.messages import node_message, plan_of, rollout_message, scope_of
from nearmesh_controlplane.rollouts.rollout import Rollout
from nearmesh_controlplane.rollouts.rollouts import Change, Rollouts
from nearmesh_controlplane.rollouts.scope import Scope

# Nodes report once a second; who watches is told no more often than this, and at least so often while it runs.
TELL_EVERY_S, LOOK_AGAIN_S = 0.2, 1.0

_CHANGES: dict[int, Change] = {
    pb.ROLLOUT_CHANGE_PAUSE: "pause",
    pb.ROLLOUT_CHANGE_RESUME: "resume",
    pb.ROLLOUT_CHANGE_ABORT: "abort",
}

# The part of answers that a version says have to agree; 0 where it says nothing of that.
Agreement = Callable[[Version], float]


class RolloutCalls:
    """What the catalog's servicer hands on."""

    def __init__(
        self,
        rollouts: Rollouts,
        catalog: Catalog,
        registry: Registry,
        audit: Audit,
        changes: Generation,
        agreement: Agreement,
    ) -> None:
        self._rollouts = rollouts
        self._catalog = catalog
        self._registry = registry
        self._audit = audit
        self._changes = changes
        self._agreement = agreement

    @whole
    async def deploy(self, request: pb.DeployRequest) -> pb.Deployment:
        """At once, or by a rollout. Raises NotFound, InvalidInput, AlreadyExists."""
        self._check_place(request)
        version, scope = self._catalog.version(request.model, request.version), scope_of(request)
        plan = plan_of(request, self._agreement(version) if request.strategy else 0.0)
        if plan is None:
            return deployment_message(await self._at_once(version, scope))
        rollout = await self._rollouts.start(version, scope, plan, caller())
        return _promised(rollout)

    async def _at_once(self, version: Version, scope: Scope) -> Deployment:
        running = await self._rollouts.begun(version.model)
        if running is not None:
            raise AlreadyExists(
                f"a rollout of {running.name} is {running.state}; wait for its end, or end it: "
                f"`nearmesh model rollout abort {running.model}`"
            )
        nodes = self._rollouts.place(version.model, version.digest, scope)
        deployment = await self._catalog.deploy(version.model, version.version, scope, str(caller()), nodes)
        await self._record("deploy", deployment)
        return deployment

    @whole
    async def rollback(self, model: str) -> pb.Deployment:
        """Ends the rollout that runs, or swaps back to the version before. Raises NotFound, InvalidInput."""
        self._catalog.versions(model)
        if await self._rollouts.begun(model) is not None:
            try:
                rollout = await self._rollouts.change(model, "abort", caller())
            except NotFound:
                pass  # It has just ended.
            else:
                return self._standing(rollout)
        deployment = await self._catalog.rollback(model, str(caller()))
        await self._record("rollback", deployment)
        return deployment_message(deployment)

    def _standing(self, rollout: Rollout) -> pb.Deployment:
        """What the nodes go back to."""
        deployment = next(iter(self._catalog.deployments(rollout.model)), None)
        found = deployment_message(deployment) if deployment else pb.Deployment(model=rollout.model)
        found.rollout = rollout.id
        return found

    async def _record(self, action: str, deployment: Deployment) -> None:
        await self._audit.record(caller(), action, f"{deployment.model}@{deployment.version}", deployment.place)

    def get(self, request: pb.GetRolloutRequest) -> pb.Rollout:
        return self._message(self._rollouts.get(request.model, request.rollout))

    def list(self, request: pb.ListRolloutsRequest) -> pb.ListRolloutsResponse:
        if request.model:
            self._catalog.versions(request.model)
        return pb.ListRolloutsResponse(rollouts=map(self._message, self._rollouts.all(request.model)))

    async def watch(self, request: pb.GetRolloutRequest) -> AsyncIterator[pb.Rollout]:
        rollout, sent = self._rollouts.get(request.model, request.rollout), None
        while True:
            seen = self._changes.value
            found = self._message(self._rollouts.get(request.model, rollout.id))
            if found != sent:
                sent = found
                yield found
            if found.ended_at_s:
                return
            await asyncio.sleep(TELL_EVERY_S)
            await self._changes.above(seen, LOOK_AGAIN_S)

    async def change(self, request: pb.ChangeRolloutRequest) -> pb.Rollout:
        change = _CHANGES.get(request.change)
        if change is None:
            raise InvalidInput(f"no change {request.change}; there are pause (1), resume (2) and abort (3)")
        self._catalog.versions(request.model)
        return self._message(await self._rollouts.change(request.model, change, caller()))

    def _message(self, rollout: Rollout) -> pb.Rollout:
        if rollout.ended:
            return rollout_message(rollout, self._changed(rollout))
        version_of = self._catalog.version_of
        evidence = self._rollouts.evidence(rollout)
        return rollout_message(rollout, [node_message(rollout, n, version_of(n.view.standing)) for n in evidence])

    def _changed(self, rollout: Rollout) -> Sequence[pb.RolloutNode]:
        """The nodes that an ended rollout changed over, as they are now; those of one that was taken back went back."""
        nodes = {node.id: node for node in self._registry.serving_nodes()}
        return [
            pb.RolloutNode(
                node=name,
                site=nodes[name].site if name in nodes else "",
                live=self._registry.presence(name) == "live",
                state=self._registry.replicas(name).get(rollout.digest, ReplicaStatus()).state,
                changed_over=rollout.state == "done",
            )
            for name in sorted(rollout.changed)
        ]

    def _check_place(self, request: pb.DeployRequest) -> None:
        nodes = self._registry.serving_nodes()
        for what, named, known in (
            ("site", request.sites, {node.site for node in nodes}),
            ("region", request.regions, {node.region for node in nodes}),
        ):
            for name in named:
                if name not in known:
                    raise NotFound(f"no {what} {name!r}; the mesh has {', '.join(sorted(known)) or 'none yet'}")


def deployment_message(deployment: Deployment) -> pb.Deployment:
    return pb.Deployment(
        model=deployment.model,
        version=deployment.version,
        digest=deployment.digest,
        sites=deployment.scope.sites,
        regions=deployment.scope.regions,
        replicas=deployment.scope.replicas,
        nodes=deployment.nodes,
        created_at_s=deployment.created_at_s,
        actor=deployment.actor,
        rollout=deployment.rollout,
    )


def _promised(rollout: Rollout) -> pb.Deployment:
    """The deployment that a rollout is to come to."""
    return pb.Deployment(
        model=rollout.model,
        version=rollout.version,
        digest=rollout.digest,
        sites=rollout.scope.sites,
        regions=rollout.scope.regions,
        replicas=rollout.scope.replicas,
        nodes=rollout.placed,
        created_at_s=rollout.created_at_s,
        actor=rollout.actor,
        rollout=rollout.id,
    )
