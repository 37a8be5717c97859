"""A control plane's folder, filled before it starts: nodes that joined, what they serve, models that are deployed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.registry.authority import Authority

from benchmarks.scale.plan import HARDWARE, MESH, Size, region, service_ms, usd_per_hour
from nearmesh.devmesh.ports import free_ports
from nearmesh.ids import MachineId
from nearmesh.tls import certificate_request, key_to_pem, new_key
from nearmesh.v1 import node_pb2

# In the folder: a file with key and certificate for each node, and the CA.
CERTIFICATES, CA = "nodes", "ca.pem"
VERSION = "1"


async def prepare(folder: Path, size: Size) -> dict[str, Any]:
    """Writes mesh.toml, the database, certificates and a token for each role; says where everything is."""
    public, mesh, http = (f"127.0.0.1:{port}" for port in free_ports(3))
    data, config = folder / "data", folder / "mesh.toml"
    listen = f'[listen]\npublic = "{public}"\nmesh = "{mesh}"\nhttp = "{http}"\n'
    config.write_text(f"mesh = {json.dumps(MESH)}\ndata = {json.dumps(str(data))}\n{listen}")
    authority = Authority.open(MESH, data / "authority")
    _certificates(authority, folder / CERTIFICATES, size)
    (folder / CA).write_bytes(authority.ca_pem)
    db = Database.open(data / "state.db")
    try:
        await db.run(_fill, size, time.time())
    finally:
        db.close()
    return {"config": str(config), "public": public, "mesh": mesh, "folder": str(folder)} | {
        role: _token(authority, role) for role in ("client", "operator")
    }


def _token(authority: Authority, role: str) -> str:
    return authority.issuer.access("load", role, now_s=time.time(), lifetime_s=24 * 3600)


def _certificates(authority: Authority, folder: Path, size: Size) -> None:
    folder.mkdir(parents=True)
    for node in size.nodes:
        who, key = MachineId(MESH, "node", node), new_key()
        signed = authority.sign(certificate_request(key, who), who, timedelta(hours=24))
        (folder / f"{node}.pem").write_bytes(key_to_pem(key) + signed)


def _fill(connection: sa.Connection, size: Size, now_s: float) -> None:
    nodes = [_node(number, node, now_s) for number, node in enumerate(size.nodes)]
    connection.execute(sa.insert(tables.nodes), nodes)
    serving = [
        {"node": node, "digest": replica.digest, "status": replica.SerializeToString()}
        for number, node in enumerate(size.nodes)
        for replica in replicas(size, number)
    ]
    connection.execute(sa.insert(tables.replicas), serving)
    versions = [{"model": model, "version": VERSION, "digest": digest(model)} for model in size.model_names]
    connection.execute(sa.insert(tables.versions), [row | {"size_bytes": 1, "created_at_s": now_s} for row in versions])
    deployed = [
        row | {"sites": _sites(size, number), "created_at_s": now_s, "actor": "load"}
        for number, row in enumerate(versions)
    ]
    connection.execute(sa.insert(tables.deployments), deployed)


def _node(number: int, node: str, now_s: float) -> dict[str, Any]:
    return {
        "id": node,
        "kind": "node",
        "site": f"site-{node}",
        "region": region(number),
        "hardware": HARDWARE[number % len(HARDWARE)],
        "own_usd_per_hour": usd_per_hour(number),
        "joined_at_s": now_s,
        **addresses(number),
    }


def addresses(number: int) -> dict[str, str]:
    """Where the node says that it is; nobody goes there."""
    ip = f"10.{number >> 8}.{number & 255}.1"
    return {"public_address": f"{ip}:8001", "mesh_address": f"{ip}:8003", "metrics_address": f"{ip}:8002"}


def _sites(size: Size, model: int) -> list[str]:
    return [f"site-{node}" for number, node in enumerate(size.nodes) if size.has(number, model)]


def digest(model: str) -> str:
    """Of a version that has no files: nobody pulls it."""
    return "sha256:" + hashlib.sha256(model.encode()).hexdigest()


def replicas(size: Size, node: int) -> Iterator[node_pb2.ReplicaStatus]:
    """What the node serves."""
    for number, model in enumerate(size.model_names):
        if size.has(node, number):
            p50_ms, p95_ms = service_ms(node, number)
            yield node_pb2.ReplicaStatus(
                model=model,
                digest=digest(model),
                state=node_pb2.REPLICA_STATE_READY,
                variant="fp32",
                service_ms_p50=p50_ms,
                service_ms_p95=p95_ms,
                inferences_per_second=1000 / p50_ms,
            )
