"""One local mesh for all fault tests; each test leaves it as it found it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from nearmesh.devmesh.mesh import LocalMesh, local_mesh


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMesh]:
    """Three regions with real models; nothing that is killed comes back unless the test starts it."""
    async with local_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running
