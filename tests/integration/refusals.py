"""What a refusal must look like, and that it left everything as it was."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from nearmesh.errors import MeshError
from nearmesh.ids import Kind, MachineId
from nearmesh.rpc import from_rpc_error
from nearmesh.tls import certificate_request, new_key
from tests.integration.mesh_processes import MESH, ControlPlane

# What the control plane decides by itself, from what nodes measure all the time.
BY_ITSELF = frozenset({"decisions"})


def everything(plane: ControlPlane) -> dict[str, list[Any]]:
    """All that the control plane keeps of what it was told, as it lies on the disk."""
    with contextlib.closing(sqlite3.connect(f"file:{plane.data / 'state.db'}?mode=ro", uri=True)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        kept = [name for name in names if name not in BY_ITSELF]
        return {name: sorted(db.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in kept}


async def seen(plane: ControlPlane) -> Any:
    """What an operator sees of it, but for what nodes measure."""
    async with plane.operator() as operator:
        nodes = await operator.nodes()
        for one in nodes:
            one.last_seen_s = one.utilization = one.in_flight = 0
        return nodes, await operator.audit()


@contextlib.asynccontextmanager
async def nothing_changes(plane: ControlPlane) -> AsyncIterator[None]:
    """Fails when the body changed what is on the disk, or what an operator sees."""
    before = everything(plane), await seen(plane)
    yield
    assert (everything(plane), await seen(plane)) == before


async def refused(call: Any) -> MeshError:
    """The error that ends the call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return from_rpc_error(caught.value)


def request_for(name: str, kind: Kind = "node", mesh: str = MESH) -> bytes:
    """A certificate request made with a key of its own."""
    return certificate_request(new_key(), MachineId(mesh, kind, name))
