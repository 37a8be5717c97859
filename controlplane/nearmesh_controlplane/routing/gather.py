"""Gathers the facts of a plan from the registry, the catalog and the books of what was measured and what was ordered.

An object that says nearly what it said before is given again: measurements drift all the time, and what hangs on them
is worked out anew only when they have moved by a noticeable part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain

from nearmesh.package import RoutePolicy
from nearmesh.routing import Objective, Times, parse_objective
from nearmesh.routing.residency import common
from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.prices.book import Prices
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import READY, Presence, Registry
from nearmesh_controlplane.routing.callers import MAX_BYTES
from nearmesh_controlplane.routing.facts import Facts, Key, ModelFacts, NodeFacts, ReplicaFacts
from nearmesh_controlplane.routing.latency import Source
from nearmesh_controlplane.routing.measurements import Measurements
from nearmesh_controlplane.routing.moves import JOINING_S
from nearmesh_controlplane.routing.replicas import alike, replica_facts, same, speeds, usual_bytes, words
from nearmesh_controlplane.routing.residency import ResidencyRules

# The part by which the size of requests has to differ before it is another one: a price per GB is an estimate already.
NOTICEABLE_BYTES = 0.1
# Network times, and how large requests are, are asked for anew this often.
LOOK_AGAIN_S = 2.0


class Gatherer:
    """Facts as of now. Remembers what it gave last."""

    def __init__(
        self,
        registry: Registry,
        catalog: Catalog,
        measurements: Measurements,
        residency: ResidencyRules,
        prices: Prices,
        clock: Callable[[], float],
        kept: Callable[[str], frozenset[str] | None] = lambda model: None,
    ) -> None:
        """`kept` are the nodes that keep a model which is asleep; None where it is awake."""
        self._registry = registry
        self._catalog = catalog
        self._measurements = measurements
        self._residency = residency
        self._prices = prices
        self._clock = clock
        self._kept = kept
        # By node and digest: what the node said, as it said it, and what that means.
        self._replicas: dict[tuple[str, str], tuple[tuple[object, ...], ReplicaFacts]] = {}
        self._network: dict[tuple[str, str], tuple[Times, Source, float]] = {}
        # Those that facts were gathered for last; of others nothing is remembered: anybody may ask about any region.
        self._regions: frozenset[str] = frozenset()
        # By model, of its usual request and answer; and when they are to be looked at again.
        self._bytes: dict[str, tuple[tuple[float, float], float]] = {}
        # What each node said last, as the registry has it and by model; what else models hang on; and the models.
        self._said: dict[str, tuple[Mapping[str, pb.ReplicaStatus], dict[str, list[pb.ReplicaStatus]]]] = {}
        self._basis: tuple[object, ...] = ()
        # Each with the policy that it was made by, until when it holds, and who alone keeps it.
        self._models: dict[str, tuple[RoutePolicy, ModelFacts, float, frozenset[str] | None]] = {}
        self._nodes: dict[str, tuple[Node, Presence, NodeFacts]] = {}

    def facts(self, asked_regions: Iterable[str]) -> Facts:
        """Everything that a plan needs, for clients in the regions of machines and in those that were asked for."""
        nodes = self._registry.serving_nodes()
        own = {node.region for node in self._registry.all() if not node.removed}
        regions = tuple(sorted(own | set(asked_regions)))
        self._regions = frozenset(regions)
        standing = {node.id: self._registry.standing(node.id) for node in nodes}
        leaving = frozenset(node.id for node in nodes if self._registry.leaving(node.id))
        stale = self._stale(nodes, standing, leaving)
        models = tuple(self._known_model(name, nodes, stale, standing, leaving) for name in self._catalog.models())
        self._forget(nodes, models)
        return Facts(
            nodes=tuple(self._node(node, standing[node.id]) for node in nodes),
            models=models,
            regions=regions,
            network={(region, node.id): self.network(region, node)[0] for region in regions for node in nodes},
            demand=self._asked(models, regions),
            ready_for_s=dict(self._ready_for_s(nodes)),
            residency=self._residency.allowed,
            transfer_usd_per_gb=self._prices.transfer_usd_per_gb,
        )

    def may_answer(self, model: str, region: str) -> frozenset[str] | None:
        """The regions that may answer a client region's calls of a model, by the rules as they are now; None: any."""
        return common(self._catalog.policy(model).regions, self._residency.allowed(region))

    def may_answer_at_all(self, region: str) -> frozenset[str] | None:
        """The same for calls that name no model."""
        return self._residency.allowed(region)

    def network(self, region: str, node: Node) -> tuple[Times, Source]:
        """The round trip between a client region and a node, and who says so."""
        now_s, key = self._clock(), (region, node.id)
        known = self._network.get(key)
        if known is None or now_s >= known[2]:
            found = self._measurements.latencies.estimate(region, node.id, node.region, now_s=now_s)
            times = known[0] if known and alike(known[0], found.times) else found.times
            known = (times, found.source, now_s + LOOK_AGAIN_S)
            if region in self._regions:
                self._network[key] = known
        return known[0], known[1]

    def _forget(self, nodes: Sequence[Node], models: Sequence[ModelFacts]) -> None:
        self._bytes = {model.name: self._bytes[model.name] for model in models if model.name in self._bytes}
        names = {model.name for model in models}
        self._models = {name: known for name, known in self._models.items() if name in names}
        ids = {node.id for node in nodes}
        self._nodes = {node: known for node, known in self._nodes.items() if node in ids}
        here = self._regions
        if len(self._network) > len(here) * len(ids):
            self._network = {key: value for key, value in self._network.items() if key[0] in here and key[1] in ids}
        # Now and then: each of them is looked at.
        if len(self._replicas) > 2 * sum(len(self._registry.replicas(node)) for node in ids):
            digests = {(node, digest) for node in ids for digest in self._registry.replicas(node)}
            self._replicas = {key: value for key, value in self._replicas.items() if key in digests}

    def _stale(
        self, nodes: Sequence[Node], standing: Mapping[str, Presence], leaving: Collection[str]
    ) -> Collection[str] | None:
        """The models of which some node says something else than last time; None: all may be other ones."""
        stale: set[str] = set()
        for node in nodes:
            replicas, known = self._registry.replicas(node.id), self._said.get(node.id)
            # As long as a node says the same it is the same object.
            if known is None or known[0] is not replicas:
                by_model: dict[str, list[pb.ReplicaStatus]] = {}
                for replica in replicas.values():
                    by_model.setdefault(replica.model, []).append(replica)
                self._said[node.id] = replicas, by_model
                stale |= by_model.keys() | (known[1].keys() if known else ())
        ids = {node.id for node in nodes}
        self._said = {node: said for node, said in self._said.items() if node in ids}
        basis = tuple((node.id, node.site, node.hardware, standing[node.id], node.id in leaving) for node in nodes)
        same, self._basis = basis == self._basis, basis
        return stale if same else None

    def _known_model(
        self,
        name: str,
        nodes: Sequence[Node],
        stale: Collection[str] | None,
        standing: Mapping[str, Presence],
        leaving: Collection[str],
    ) -> ModelFacts:
        """The model as it was, where nothing about it is another."""
        policy, known, now_s = self._catalog.policy(name), self._models.get(name), self._clock()
        # What gateways see of its calls changes by itself, so it holds for no longer than until then.
        seen_by_gateways = self._measurements.callers.hears(name)
        end_s = now_s if known is None or (seen_by_gateways and math.isinf(known[2])) else known[2]
        kept = self._kept(name)
        fresh = known is not None and known[0] == policy and known[3] == kept and now_s < end_s
        if known is not None and fresh and stale is not None and name not in stale:
            return known[1]
        # How large requests are is looked at now and then alone: what was said since counts then.
        look_s = self._bytes.get(name, (None, now_s))[1]
        said = {node.id: of for node in nodes if (of := self._said[node.id][1].get(name))}
        found = self._model(name, nodes, said, standing, leaving, kept)
        if known is not None and known[1] == found:
            found = known[1]
        # Which of several versions on a node is the one that counts, deployments tell.
        if all(len(replicas) == 1 for replicas in said.values()):
            until_s = look_s if now_s < look_s else math.inf
            until_s = min(until_s, now_s + LOOK_AGAIN_S) if seen_by_gateways else until_s
            self._models[name] = policy, found, until_s, kept
        else:
            self._models.pop(name, None)
        return found

    def _model(
        self,
        name: str,
        nodes: Sequence[Node],
        said: Mapping[str, list[pb.ReplicaStatus]],
        standing: Mapping[str, Presence],
        leaving: Collection[str],
        kept: frozenset[str] | None = None,
    ) -> ModelFacts:
        policy = self._catalog.policy(name)
        per_s = speeds(nodes, said)
        request_bytes, answer_bytes = self._moved(name, said)
        small = request_bytes + answer_bytes <= MAX_BYTES
        replicas: dict[str, ReplicaFacts] = {}
        absent: dict[str, str] = {}
        lost: dict[str, ReplicaFacts] = {}
        for node in nodes:
            replica, why = self._replica(name, node, said.get(node.id, []), leaving)
            if kept is not None and node.id not in kept:
                replica, why = None, f"nobody asked for long, so it is kept by {', '.join(sorted(kept)) or 'no node'}"
            if replica is None:
                absent[node.id] = why
                continue
            fact = self._fact(node, replica, per_s.get((node.hardware, replica.variant), 0.0), small)
            (lost if standing[node.id] == "gone" else replicas)[node.id] = fact
        if not replicas:
            # For this model alone, whatever else is live: to try a node that was lost, and may only be cut off from the
            # control plane, is better than an empty route.
            replicas, lost = lost, {}
        absent |= dict.fromkeys(lost, "its session with the control plane is gone")
        return ModelFacts(
            name=name,
            objective=policy.objective,
            deadline_ms=policy.deadline_ms,
            replicas=replicas,
            regions=frozenset(policy.regions),
            absent=absent,
            transfer_bytes=request_bytes + answer_bytes,
            answer_bytes=answer_bytes,
        )

    def _replica(
        self, model: str, node: Node, known: Sequence[pb.ReplicaStatus], leaving: Collection[str]
    ) -> tuple[pb.ReplicaStatus | None, str]:
        """The node's ready replica, or the reason why there is none."""
        # What is on trial answers a part of what the standing version is asked; that one's figures are the node's.
        ready = [r for r in known if r.state == READY and not r.on_trial]
        if node.id in leaving:
            return None, "it is being drained"
        if not ready:
            return None, next((r.detail for r in known if r.detail), "it has no replica of this model")
        if len(ready) == 1:
            return ready[0], ""
        # While versions change, both the old and the new one may be ready; the deployed one is what serves.
        deployed = self._catalog.deployed(model, node.site, node.region, node.id)
        return next((r for r in ready if deployed and r.digest == deployed.digest), ready[0]), ""

    def _fact(self, node: Node, replica: pb.ReplicaStatus, per_s: float, small: bool) -> ReplicaFacts:
        """`small`: the model's messages are, so that what gateways saw of its calls tells of the node."""
        extra_ms = self._measurements.beyond_claim_ms(node.id, replica) if small else 0.0
        key, said = (node.id, replica.digest), words(replica, per_s, extra_ms)
        known = self._replicas.get(key)
        if known is not None and known[0] == said:
            return known[1]
        found = replica_facts(replica, per_s, extra_ms)
        if known is not None and same(known[1], found):
            found = known[1]
        self._replicas[key] = said, found
        return found

    def _moved(self, model: str, said: Mapping[str, list[pb.ReplicaStatus]]) -> tuple[float, float]:
        """What a request and its answer come to on average, as the nodes counted; as before while they are silent."""
        now_s = self._clock()
        known, until_s = self._bytes.get(model, ((0.0, 0.0), now_s))
        if now_s >= until_s:
            found = usual_bytes(chain.from_iterable(said.values())) or known
            if any(abs(x - y) > NOTICEABLE_BYTES * y for x, y in zip(found, known, strict=True)):
                known = found
            self._bytes[model] = known, now_s + LOOK_AGAIN_S
        return known

    def _asked(self, models: Sequence[ModelFacts], regions: Sequence[str]) -> dict[Key, float]:
        own, here = {model.name: model.objective for model in models}, set(regions)
        found: dict[Key, float] = {}
        for (region, model, wanted), per_s in self._measurements.demand.demand(self._clock()).items():
            if model in own and region in here:
                objective: Objective = parse_objective(wanted) if wanted else own[model]
                key = (region, model, objective)
                found[key] = found.get(key, 0.0) + per_s
        return found

    def _ready_for_s(self, nodes: Sequence[Node]) -> Iterable[tuple[tuple[str, str], float]]:
        """Of replicas that are young."""
        now_s = self._clock()
        for node in nodes:
            since = self._registry.ready_since(node.id)
            young = [(digest, at_s) for digest, at_s in since.items() if now_s - at_s < JOINING_S]
            replicas = self._registry.replicas(node.id)
            for digest, at_s in young:
                if digest in replicas:
                    yield (node.id, replicas[digest].model), now_s - at_s

    def _node(self, node: Node, presence: Presence) -> NodeFacts:
        known = self._nodes.get(node.id)
        if known is None or known[0] is not node or known[1] != presence:
            known = self._nodes[node.id] = node, presence, _node(node, presence)
        return known[2]


def _node(node: Node, presence: Presence) -> NodeFacts:
    return NodeFacts(
        id=node.id,
        site=node.site,
        region=node.region,
        usd_per_hour=node.usd_per_hour,
        spot=node.spot,
        standing=presence,
    )
