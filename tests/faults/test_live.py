"""A minute of the live run; the soak has ten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nearmesh.devmesh.mesh import LocalMesh
from tests.faults.live import live
from tests.faults.live_report import broken

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]


async def test_p1_p2_nothing_that_is_done_to_the_mesh_reaches_a_caller(mesh: LocalMesh, tmp_path: Path) -> None:
    found = await live(mesh, seed=1, seconds=60.0, folder=tmp_path)
    print(json.dumps({key: found[key] for key in ("ways", "kinds", "moves")}))
    if found["calm_p95_ms"] > found["deadline_ms"]:
        pytest.skip(f"this machine is too busy: {found['calm_p95_ms']} ms a call before anything was done to the mesh")
    assert found["faults"], "something was done"
    assert not broken(found), (broken(found), found["errors"][:3])
