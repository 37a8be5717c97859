"""A snapshot as a control plane would sign it, for tests that need no control plane."""

from __future__ import annotations

from typing import Any

from nearmesh.routing import OBJECTIVES
from nearmesh.routing.times import Times
from nearmesh.v1 import route_pb2 as pb

EUROPE, AMERICA = "europe-west1", "us-east1"
NOW_S = 1_000_000.0


def snapshot(*, generation: int = 5, **more: Any) -> pb.Snapshot:
    """Nodes eu and us, model m: eu first in Europe, us in America, where eu has another address."""
    nodes = [_node("eu", EUROPE), _node("us", AMERICA)]
    whole: dict[str, Any] = {
        "mesh": "mesh",
        "issued_at_s": NOW_S,
        "expires_at_s": NOW_S + 3600,
        "nodes": nodes,
        "models": [pb.SnapshotModel(name="m", version="1", digest="sha256:0", objective="nearest", deadline_ms=300)],
        "tables": [
            pb.SnapshotTable(region=EUROPE, routes=_routes(0, 1), nearest=[0, 1]),
            pb.SnapshotTable(
                region=AMERICA,
                routes=_routes(1, 0),
                nearest=[1, 0],
                addresses=[pb.SnapshotAddress(node=0, public_address="10.0.0.9:1", mesh_address="10.0.0.9:3")],
            ),
        ],
        "removed_nodes": ["lost"],
    }
    return pb.Snapshot(generation=generation, **{**whole, **more})


def _node(name: str, region: str) -> pb.SnapshotNode:
    return pb.SnapshotNode(
        id=name,
        site=f"site-{name}",
        region=region,
        public_address=f"10.0.0.{len(region)}:8001",
        mesh_address=f"10.0.0.{len(region)}:8003",
        usd_per_hour=1.0,
    )


def _routes(*order: int) -> list[pb.SnapshotRoute]:
    return [
        pb.SnapshotRoute(
            model=0,
            objective=objective,
            choices=[
                pb.SnapshotChoice(
                    node=node,
                    share=float(place == 0),
                    network_ms_quantiles=Times.certain(10.0 + 90 * place).ms,
                    service_ms_quantiles=Times.certain(5.0).ms,
                    usd_per_1000=0.5,
                    p_in_time=1.0,
                    why="nearest" if place == 0 else "farther",
                )
                for place, node in enumerate(order)
            ],
        )
        for objective in OBJECTIVES
    ]
