"""Routes read from a snapshot: for xDS as tables, for SDKs and people as messages. Never changes once made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nearmesh.errors import NotFound
from nearmesh.ids import node_server_name
from nearmesh.regions import prior_round_trip_ms
from nearmesh.routing.objectives import IN_TIME, OBJECTIVES
from nearmesh.routing.table import Endpoint, Listener, ModelRoutes, RouteTable, in_steps
from nearmesh.routing.times import Times, sum_of
from nearmesh.v1 import route_pb2 as pb


class SnapshotRoutes:
    """The routes of one snapshot, for any region: one that the snapshot lacks gets those of the nearest that it has."""

    def __init__(self, snapshot: pb.Snapshot) -> None:
        """`snapshot` has passed `opened`."""
        self._snapshot = snapshot
        self._regions = {table.region: table for table in snapshot.tables}
        self._addresses = {table.region: {a.node: a for a in table.addresses} for table in snapshot.tables}
        # Machines whose certificates count no more.
        self.removed = frozenset(snapshot.removed_nodes)
        self._tables: dict[tuple[str, Listener], RouteTable] = {}

    def __len__(self) -> int:
        """How many regions it has routes for."""
        return len(self._regions)

    @property
    def mesh(self) -> str:
        return self._snapshot.mesh

    @property
    def generation(self) -> int:
        return self._snapshot.generation

    @property
    def only_region(self) -> str:
        """Of whose clients alone it has the routes; "" when it has those of all."""
        return self._snapshot.only_region

    @property
    def issued_at_s(self) -> float:
        """Seconds since the epoch."""
        return self._snapshot.issued_at_s

    @property
    def expires_at_s(self) -> float:
        """Seconds since the epoch."""
        return self._snapshot.expires_at_s

    @property
    def jwks_json(self) -> str:
        return self._snapshot.jwks_json

    @property
    def nodes(self) -> Iterable[pb.SnapshotNode]:
        return self._snapshot.nodes

    def shares(self) -> dict[tuple[str, str, str], dict[str, float]]:
        """By client region, model and objective: of the requests, what each node gets."""
        nodes, models = self._snapshot.nodes, self._snapshot.models
        return {
            (table.region, models[route.model].name, route.objective): {
                nodes[choice.node].id: choice.share for choice in route.choices if choice.share > 0
            }
            for table in self._snapshot.tables
            for route in table.routes
        }

    def knows(self, model: str) -> bool:
        """Whether there are routes for the model, if only empty ones."""
        return bool(self._regions) and any(known.name == model for known in self._snapshot.models)

    def region(self, asked: str) -> str:
        """The region whose routes a client in `asked` gets. Raises NotFound when the snapshot has none at all."""
        if asked in self._regions:
            return asked
        if not self._regions:
            raise NotFound("the snapshot holds no routes; the mesh had no nodes when it was made")
        return min(self._regions, key=lambda known: (prior_round_trip_ms(asked, known), known))

    def address(self, region: str, node: int, listener: Listener) -> str:
        """Where clients of `region` reach the node with that index."""
        own = self._snapshot.nodes[node]
        other = self._addresses[self.region(region)].get(node)
        if listener == "public":
            return (other and other.public_address) or own.public_address
        return (other and other.mesh_address) or own.mesh_address

    def table(self, region: str, listener: Listener) -> RouteTable:
        """As `RouteSource.table`."""
        source = self.region(region) if self._regions else ""
        kept = self._tables.get((source, listener))
        if kept is None:
            kept = self._tables[source, listener] = self._table(source, listener)
        return kept

    def route(self, model: str, region: str, objective: str = "") -> pb.Route:
        """The decision for one model; without an objective, by the model's policy. Raises NotFound."""
        index = next((i for i, m in enumerate(self._snapshot.models) if m.name == model), None)
        if index is None:
            known = ", ".join(sorted(m.name for m in self._snapshot.models)) or "none yet"
            raise NotFound(f"no model {model!r}; the mesh has {known}")
        policy, source = self._snapshot.models[index], self.region(region)
        wanted = objective or policy.objective
        found = [r for r in self._regions[source].routes if r.model == index and r.objective == wanted]
        choices = found[0].choices if found else ()
        return pb.Route(
            model=model,
            version=policy.version,
            digest=policy.digest,
            region=region,
            objective=wanted,
            deadline_ms=policy.deadline_ms,
            candidates=[self._candidate(source, choice) for choice in choices],
            generation=self.generation,
            expires_at_s=self.expires_at_s,
        )

    def _candidate(self, region: str, choice: pb.SnapshotChoice) -> pb.Candidate:
        node = self._snapshot.nodes[choice.node]
        network, service = _times(choice.network_ms_quantiles), _times(choice.service_ms_quantiles)
        total = sum_of(network, service)
        return pb.Candidate(
            node=node.id,
            site=node.site,
            region=node.region,
            address=self.address(region, choice.node, "public"),
            server_name=node_server_name(self.mesh, node.id),
            ready=True,
            network_ms_p50=network.p50_ms,
            network_ms_p95=network.p95_ms,
            service_ms_p50=service.p50_ms,
            service_ms_p95=service.p95_ms,
            usd_per_hour=node.usd_per_hour,
            usd_per_1000=choice.usd_per_1000,
            in_time=choice.p_in_time >= IN_TIME,
            why=choice.why,
            network_ms_quantiles=network.ms,
            service_ms_quantiles=service.ms,
            p_in_time=choice.p_in_time,
            share=choice.share,
            total_ms_p50=total.p50_ms,
            total_ms_p95=total.p95_ms,
            total_ms_p99=total.p99_ms,
            spot=node.spot,
        )

    def _table(self, region: str, listener: Listener) -> RouteTable:
        found = self._regions.get(region, pb.SnapshotTable())
        orders: dict[int, dict[str, tuple[Endpoint, ...]]] = {}
        for route in found.routes:
            orders.setdefault(route.model, {})[route.objective] = tuple(
                self._endpoint(region, choice.node, listener, in_steps(choice.share)) for choice in route.choices
            )
        models = {m.name: _model(m, orders.get(i, {})) for i, m in enumerate(self._snapshot.models)}
        nearest = tuple(self._endpoint(region, node, listener) for node in found.nearest)
        return RouteTable(region=region, models=models, nearest=nearest)

    def _endpoint(self, region: str, index: int, listener: Listener, share: float = 0.0) -> Endpoint:
        node, address = self._snapshot.nodes[index], self.address(region, index, listener)
        return Endpoint(node=node.id, site=node.site, region=node.region, address=address, share=share)


def _model(model: pb.SnapshotModel, orders: Mapping[str, tuple[Endpoint, ...]]) -> ModelRoutes:
    """Every objective has its order, if only an empty one."""
    by_objective = {objective: orders.get(objective, ()) for objective in (*OBJECTIVES, model.objective)}
    return ModelRoutes(default_objective=model.objective, by_objective=by_objective)


def _times(quantiles: Iterable[float]) -> Times:
    return Times.of(list(quantiles)) or Times.certain(0.0)
