"""Which nodes a run asks: those that have data for its model, whose operators allow training, and that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nearmesh.v1.node_pb2 import TrainingStatus
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.runs.folder import SiteInfo
from nearmesh_controlplane.runs.run import Run
from nearmesh_controlplane.runs.schedule import NodeNow


class Sites:
    """As the registry knows them now."""

    def __init__(
        self,
        registry: Registry,
        status: Callable[[str], TrainingStatus | None],
        utilization: Callable[[str], float | None] = lambda node: None,
    ) -> None:
        """`status` is what a node says of training, None where that is not allowed; `utilization` is by serving."""
        self._registry = registry
        self._status = status
        self._utilization = utilization

    def ready(self, run: Run) -> list[str]:
        """Nodes that would take part now."""
        return [node.id for node in self._registry.serving_nodes() if self._is_ready(run, node)]

    def _is_ready(self, run: Run, node: Node) -> bool:
        if run.asked.sites and node.site not in run.asked.sites:
            return False
        if node.cordoned or self._registry.presence(node.id) != "live" or self._registry.leaving(node.id):
            return False
        return self._may(run, node.id)

    def _may(self, run: Run, node: str) -> bool:
        """It has data for the model, and its operator lets such a run have them."""
        said = self._status(node)
        if said is None or not said.public_key or run.model not in said.models:
            return False
        return said.own_apps or not run.own_app

    def keys(self, run: Run) -> dict[str, str]:
        """By which the SuperNodes of the nodes that it asks prove themselves; of those that may (still) take part.

        A node that is away for a moment may come back in the middle of a round.
        """
        found = {}
        for node in self._registry.serving_nodes():
            said = self._status(node.id)
            if self._registry.leaving(node.id) or node.id not in run.nodes:
                continue
            if said is not None and self._may(run, node.id):
                found[node.id] = said.public_key
        return found

    def info(self, run: Run, node: str) -> SiteInfo:
        known = self._registry.get(node)
        return SiteInfo(node=node, site=known.site, region=known.region, pseudonym=run.nodes[node])

    def now(self, nodes: Iterable[str]) -> list[NodeNow]:
        """What a schedule goes by."""
        return [
            NodeNow(
                node=node,
                utilization=self._utilization(node),
                usd_per_hour=self._registry.get(node).usd_per_hour,
            )
            for node in nodes
        ]
