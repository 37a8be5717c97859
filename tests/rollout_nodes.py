"""Nodes that are only pretended: they follow what they are told, and say what a node with such versions would say.

`Mesh` runs them against the control plane's own parts, without sockets and with a clock that the test turns; over real
sessions they are tests/integration/rollout_sessions.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.registry.wanted import wanted_state
from nearmesh_controlplane.rollouts.rollout import ENDED, Limits, Plan, Rollout
from nearmesh_controlplane.rollouts.rollouts import Rollouts
from nearmesh_controlplane.rollouts.scope import Scope

from nearmesh.rpc import Identity
from nearmesh.v1 import node_pb2 as pb
from tests.control_plane_state import State, digest_of, state

ME = Identity("me", "operator")
MODEL = "m"
CANARY = Plan(strategy="canary", steps=(0.05, 0.25, 0.5), step_s=10.0, mirror_share=0.25, limits=Limits(agreement=0.9))
ROLLING = Plan(strategy="rolling", step_s=2.0)
ALL = Plan(strategy="all")
PLANS = {"canary": CANARY, "rolling": ROLLING, "all": ALL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What a version does on a node."""

    # Of its requests, the part that fails.
    errors: float = 0.0
    ms: float = 5.0
    # Of its answers to mirrored requests, the part that agrees.
    agrees: float = 1.0
    # The node will not serve it, and says this.
    refused: str = ""
    # The node goes away at its first request.
    crashes: bool = False


@dataclass(slots=True)
class _Version:
    """One version on the node."""

    state: pb.ReplicaState = pb.REPLICA_STATE_PULLING
    detail: str = ""
    answered: float = 0.0
    failed: float = 0.0
    compared: float = 0.0
    agreed: float = 0.0


@dataclass(slots=True)
class FakeNode:
    """One node with one model."""

    name: str
    site: str = ""
    region: str = "europe-west1"
    # Requests that it is asked, per second.
    per_s: float = 100.0
    # By digest.
    behaviours: Mapping[str, Behaviour] = field(default_factory=dict)
    # It never gets further than pulling.
    stuck: bool = False
    away: bool = False
    # What it is told, by digest: the standing version has no trial.
    wanted: dict[str, pb.WantedVersion] = field(default_factory=dict)
    serving: str = ""
    versions: dict[str, _Version] = field(default_factory=dict)
    # The largest share that any version on trial was given, and how many versions it held at a time.
    largest_share: float = 0.0
    most_versions: int = 0

    def behaviour(self, digest: str) -> Behaviour:
        return self.behaviours.get(digest, Behaviour())

    def hear(self, wanted: pb.WantedState) -> None:
        self.wanted = {version.digest: version for version in wanted.versions if version.model == MODEL}
        for digest in self.wanted:
            self.versions.setdefault(digest, _Version())
        standing = self._standing()
        for digest in list(self.versions):
            if digest not in self.wanted and (digest != self.serving or not standing):
                del self.versions[digest]
        if self.serving not in self.versions:
            self.serving = ""
        if standing in self.versions and self.versions[standing].state == pb.REPLICA_STATE_READY:
            self._serve(standing)

    def _standing(self) -> str:
        return next((d for d, version in self.wanted.items() if not version.HasField("trial")), "")

    def _serve(self, digest: str) -> None:
        before, self.serving = self.serving, digest
        if before and before != digest and before not in self.wanted:
            del self.versions[before]

    def go_on(self, seconds: float) -> None:
        """What happens on it in that time."""
        for digest, version in self.versions.items():
            self._load(digest, version)
        standing = self._standing()
        if standing and self.versions[standing].state == pb.REPLICA_STATE_READY:
            self._serve(standing)
        self.most_versions = max(self.most_versions, len(self.versions))
        self._answer(self.per_s * seconds)

    def _load(self, digest: str, version: _Version) -> None:
        if self.stuck and version.state == pb.REPLICA_STATE_PULLING:
            return
        if version.state == pb.REPLICA_STATE_PULLING:
            version.state = pb.REPLICA_STATE_LOADING
        elif version.state == pb.REPLICA_STATE_LOADING:
            version.detail = self.behaviour(digest).refused
            version.state = pb.REPLICA_STATE_FAILED if version.detail else pb.REPLICA_STATE_READY

    def _answer(self, requests: float) -> None:
        left = requests
        for digest, wanted in self.wanted.items():
            if wanted.HasField("trial") and self.versions[digest].state == pb.REPLICA_STATE_READY:
                self.largest_share = max(self.largest_share, wanted.trial.share)
                left -= self._asked(digest, requests * wanted.trial.share)
                self._compare(digest, left * wanted.trial.mirror_share)
        if self.serving:
            self._asked(self.serving, left)

    def _asked(self, digest: str, requests: float) -> float:
        does, version = self.behaviour(digest), self.versions[digest]
        if does.crashes and requests:
            self.away, self.versions, self.serving = True, {}, ""
            return requests
        version.failed += requests * does.errors
        version.answered += requests * (1 - does.errors)
        return requests

    def _compare(self, digest: str, requests: float) -> None:
        if digest in self.versions:
            does, version = self.behaviour(digest), self.versions[digest]
            version.compared += requests
            version.failed += requests * does.errors
            version.agreed += requests * does.agrees * (1 - does.errors)

    def status(self) -> pb.NodeStatus:
        return pb.NodeStatus(replicas=[self._replica(d, version) for d, version in self.versions.items()])

    def _replica(self, digest: str, version: _Version) -> pb.ReplicaStatus:
        wanted = self.wanted.get(digest)
        found = pb.ReplicaStatus(
            model=MODEL,
            digest=digest,
            state=version.state,
            detail=version.detail,
            variant="fp32",
            answered=int(version.answered),
            failed=int(version.failed),
            compared=int(version.compared),
            agreed=int(version.agreed),
            on_trial=bool(wanted and wanted.HasField("trial")),
            inferences_per_second=1000.0,
        )
        if version.state == pb.REPLICA_STATE_READY:
            found.service_ms_p50 = found.service_ms_p95 = self.behaviour(digest).ms
        return found


class Mesh:
    """The control plane's memory, its rollouts, and some nodes."""

    def __init__(self, plane: State, rollouts: Rollouts, nodes: Mapping[str, FakeNode]) -> None:
        self.plane = plane
        self.rollouts = rollouts
        self.nodes = dict(nodes)
        self.audit = rollouts._audit

    async def join(self, node: FakeNode) -> None:
        self.nodes[node.name] = node
        await self.plane.node(node.name, node.region, site=node.site)

    async def start(self, version: str, plan: Plan, scope: Scope | None = None) -> Rollout:
        found = self.plane.catalog.version(MODEL, version)
        return await self.rollouts.start(found, scope or Scope(), plan, ME)

    async def pass_s(self, seconds: float) -> None:
        """Each second every node hears what it should have, does it, and reports; the leader looks twice."""
        for _ in range(round(seconds)):
            for node in self.nodes.values():
                await self._second(node)
            for _ in range(2):
                await self.rollouts.look()
                self.plane.clock.now_s += 0.5
                self.plane.wall.now_s += 0.5

    async def _second(self, node: FakeNode) -> None:
        registry = self.plane.registry
        if node.away:
            if registry.presence(node.name) == "live":
                registry.session_closed(node.name)
            return
        if registry.presence(node.name) != "live":
            registry.session_opened(node.name)
        node.hear(self.told(node.name))
        node.go_on(1.0)
        if not node.away:
            await registry.status(node.name, node.status())

    def told(self, node: str) -> pb.WantedState:
        return wanted_state(
            node,
            self.plane.registry,
            self.plane.catalog,
            jwks_json="",
            registry_url="",
            rollouts=self.rollouts.running(),
        )

    async def ends(self, within_s: float = 600.0) -> Rollout:
        """How the newest rollout ended."""
        for _ in range(round(within_s)):
            found = self.rollouts.get(MODEL)
            if found.state in ENDED:
                return found
            await self.pass_s(1)
        raise AssertionError(f"not within {within_s} s: {self.rollouts.get(MODEL)}")

    async def until(self, phase: str, step: int = 0, within_s: float = 600.0) -> Rollout:
        for _ in range(round(within_s)):
            found = self.rollouts.get(MODEL)
            if (found.phase, found.step) == (phase, step):
                return found
            await self.pass_s(1)
        raise AssertionError(f"not within {within_s} s: {self.rollouts.get(MODEL)}")

    @property
    def serving(self) -> dict[str, str]:
        """The version that each node answers with."""
        return {name: self.plane.catalog.version_of(node.serving) for name, node in self.nodes.items()}


def rollouts_of(plane: State) -> Rollouts:
    """As a control plane over that state has them; not restored yet."""
    return Rollouts(
        plane.db,
        plane.changes,
        plane.registry,
        plane.catalog,
        Audit(plane.db),
        lambda: plane.measurements.demand.demand(plane.clock.now_s),
        clock=plane.clock,
        wall=plane.wall,
    )


@asynccontextmanager
async def mesh(folder: Path, *nodes: FakeNode, deployed: str = "1", **behaviours: Behaviour) -> AsyncIterator[Mesh]:
    """Model m in versions 1 and 2, the first one deployed and served; `behaviours` by version, as v1 and v2."""
    does = {digest_of(MODEL, name[1:]): found for name, found in behaviours.items()}
    async with state(folder) as plane:
        for version in "12":
            await plane.publish(MODEL, version)
        found = Mesh(plane, rollouts_of(plane), {})
        await found.rollouts.restore()
        for node in nodes or tuple(FakeNode(name, site=f"site-{name}") for name in "abc"):
            node.behaviours = does
            await found.join(node)
        if deployed:
            await plane.catalog.deploy(MODEL, deployed, (), "me")
            await found.pass_s(4)
        yield found
