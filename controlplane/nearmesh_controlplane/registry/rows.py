"""What the database keeps of nodes and of their replicas. Each function is part of a transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.registry.node import Node


def node_from_row(row: sa.Row[Any]) -> Node:
    return Node(**row._mapping)


def read_all(connection: sa.Connection) -> list[tuple[Node, dict[str, pb.ReplicaStatus]]]:
    replicas: dict[str, dict[str, pb.ReplicaStatus]] = {}
    for row in connection.execute(sa.select(tables.replicas)):
        replicas.setdefault(row.node, {})[row.digest] = pb.ReplicaStatus.FromString(row.status)
    return [(node_from_row(row), replicas.get(row.id, {})) for row in connection.execute(sa.select(tables.nodes))]


def change_node(connection: sa.Connection, node_id: str, values: dict[str, Any]) -> Node:
    row = tables.nodes.c.id == node_id
    found = connection.execute(sa.select(tables.nodes).where(row).with_for_update()).one()
    if any(found._mapping[name] != value for name, value in values.items()):
        connection.execute(sa.update(tables.nodes).where(row).values(**values))
        found = connection.execute(sa.select(tables.nodes).where(row)).one()
    return node_from_row(found)


def write_replicas(connection: sa.Connection, node_id: str, replicas: Mapping[str, pb.ReplicaStatus]) -> None:
    connection.execute(sa.delete(tables.replicas).where(tables.replicas.c.node == node_id))
    rows = [{"node": node_id, "digest": d, "status": r.SerializeToString()} for d, r in replicas.items()]
    if rows:
        connection.execute(sa.insert(tables.replicas), rows)
