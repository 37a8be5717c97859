"""Some cells of the matrix of phases and faults; all of them are the soak's."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearmesh.devmesh.mesh import LocalMesh
from tests.faults import matrix

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


async def test_p4_versions_come_and_go_and_no_stock_client_sees_an_error(mesh: LocalMesh, tmp_path: Path) -> None:
    found = await matrix.run(mesh, tmp_path, matrix.SHORT)
    assert found["cells"].keys() == set(matrix.SHORT)
    assert found["requests"] > 0
