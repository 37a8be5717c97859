"""Everybody who starts while the control plane is away: gateways, a node, and fresh clients of each kind."""

from __future__ import annotations

import asyncio
import time

from nearmesh.devmesh.mesh import LocalMesh
from nearmesh.devmesh.plan import MODELS, REGIONS, node_of
from nearmesh.devmesh.tour import tour
from nearmesh.snapshot import SnapshotKeeper
from nearmesh.snapshot.keeper import SNAPSHOT_FILE
from tests.faults import scenarios
from tests.faults.scenarios import Figures, until


async def started_without_control_plane(mesh: LocalMesh) -> Figures:
    """kill -9 of the control plane, of all gateways and of a node; all but the control plane are started again, and
    clients that never ran ask every model from every region through every way in."""
    before = await scenarios._known(mesh)
    await until(lambda: _kept(mesh))
    killed_s = time.time()
    await mesh.control_plane.kill()
    restarted = (*mesh.gateways.values(), mesh.nodes[REGIONS[0]])
    try:
        for child in restarted:
            await child.kill()
            await child.start()
        await until(lambda: _answer(mesh))
        ready_s = time.time()
        rows = await tour(mesh.plan.folder)
        wrong = [row for row in rows if not row.correct]
        assert wrong == [], wrong
        assert len(rows) == len(REGIONS) * 3 * len(MODELS)
    finally:
        await mesh.control_plane.start()
    await until(lambda: scenarios._is_known(mesh, before))
    await until(lambda: scenarios._all_measured(mesh))
    mesh.write_state()
    return {"gateways_answer_after_s": round(ready_s - killed_s, 1), "rows": len(rows)}


async def _kept(mesh: LocalMesh) -> bool:
    """Whether every node and gateway has a snapshot by which all nodes serve all models."""
    ca_pem = mesh.ca_path.read_bytes()
    files = [(mesh.plan.folder / name / SNAPSHOT_FILE, region) for name, region in _machines(mesh)]
    return all(_complete(SnapshotKeeper(ca_pem, path, region=region)) for path, region in files)


def _machines(mesh: LocalMesh) -> list[tuple[str, str]]:
    """With the region whose part of the snapshot is enough for it."""
    nodes = [(child.name, "") for child in mesh.nodes.values()]
    return nodes + [(child.name, region) for region, child in mesh.gateways.items()]


def _complete(keeper: SnapshotKeeper) -> bool:
    known = keeper.known
    everybody = {node_of(region) for region in REGIONS}
    return known is not None and all(
        {candidate.node for candidate in known.route(model, REGIONS[0]).candidates} == everybody
        for model in MODELS
        if known.knows(model)
    )


async def _answer(mesh: LocalMesh) -> bool:
    """Whether the gateways listen: Envoy does when it has been told everything."""
    try:
        for region in REGIONS:
            _, writer = await asyncio.open_connection("127.0.0.1", mesh.plan.gateways[region])
            writer.close()
    except OSError:
        return False
    return True
