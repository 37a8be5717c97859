"""The mesh of a study: a control plane, and a node for each site with that site's data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks import local as plain
from benchmarks.federated.study import Study
from benchmarks.local import REGION as REGION
from benchmarks.local import Local as Local
from nearmesh.packaging.release import release
from nearmesh.packaging.sources import default_cache

# Of the machine that all nodes share.
CPU_SHARE = 0.5


@asynccontextmanager
async def local(study: Study, data: Path, folder: Path) -> AsyncIterator[Local]:
    """In an empty folder. Returns when every site serves the package's first version.

    Raises MeshError, TimeoutError.
    """
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(plain.control_plane(folder, "federated"))
        asked = study.write_sites(data, folder / "sites")
        nodes = [await plain.joined(mesh, f"node-{site}", site, _training(study, asked[site])) for site in study.sites]
        for node in nodes:
            await node.child.start()
            stack.push_async_callback(node.child.stop)
        package = await asyncio.to_thread(study.make_package, data, folder / "package")
        artifact = await asyncio.to_thread(release, package, default_cache())
        await plain.serve(mesh, artifact, {node.name for node in nodes})
        yield mesh


def _training(study: Study, data: Mapping[str, Any]) -> dict[str, Any]:
    return {"training": {"allowed": True, "cpu_share": CPU_SHARE, "data": {study.name: dict(data)}}}
