"""Which nodes a query is for, and which of them it may not go to. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nearmesh.errors import InvalidInput
from nearmesh.v1 import node_pb2
from nearmesh.v1 import vector_pb2 as pb

_SITE, _REGION, _MESH = pb.Reach.SCOPE_SITE, pb.Reach.SCOPE_REGION, pb.Reach.SCOPE_MESH
# Of places that are named to a person who asked for one that is none.
_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """A node's place."""

    node: str
    site: str
    region: str
    # Of another node that asks: sites whose rows may not go there, since a residency rule binds their region.
    barred: frozenset[str] = frozenset()


def asked(reach: pb.Reach, here: Here, nodes: Sequence[node_pb2.VectorNode]) -> list[node_pb2.VectorNode]:
    """All that a query is for, this node too if it is one of them. Raises InvalidInput for a place that is none."""
    known = _with(here, nodes)
    match reach.scope:
        case pb.Reach.SCOPE_MESH:
            return known
        case pb.Reach.SCOPE_SITE:
            return _of("site", reach.name or here.site, known, lambda node: node.site)
        case pb.Reach.SCOPE_REGION:
            return _of("region", reach.name or here.region, known, lambda node: node.region)
        case _:
            return [node for node in known if node.node == here.node]


def _with(here: Here, nodes: Sequence[node_pb2.VectorNode]) -> list[node_pb2.VectorNode]:
    """This node first, which the control plane may not have named yet."""
    mine = node_pb2.VectorNode(node=here.node, site=here.site, region=here.region)
    return [mine, *(node for node in nodes if node.node != here.node)]


def _of(
    kind: str, name: str, nodes: Sequence[node_pb2.VectorNode], place: Callable[[node_pb2.VectorNode], str]
) -> list[node_pb2.VectorNode]:
    found = [node for node in nodes if place(node) == name]
    if not found:
        there = ", ".join(sorted({place(node) for node in nodes})[:_NAMED])
        raise InvalidInput(f"nobody keeps vectors in {kind} {name[:64]!r}; there are {there}")
    return found


def by_id(node: str, nodes: Sequence[node_pb2.VectorNode]) -> node_pb2.VectorNode | None:
    """One that keeps vectors, by its name."""
    return next((one for one in nodes if one.node == node), None)


def admits(regions: Sequence[str], region: str) -> bool:
    """Whether a collection bound to these regions may be kept in that one, and asked from there."""
    return not regions or region in regions
