"""Real nodes of one site fetch versions from each other, and give them to nobody else."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import grpc
import pytest

from nearmesh.v1 import blob_pb2, blob_pb2_grpc, node_pb2
from tests.heavy_model import heavy
from tests.integration.mesh_processes import Node, control_plane, node

MIB = 2**20


def brought(agent: Node, version: str) -> dict[str, int]:
    """By source, what the agent says that it pulled of a version."""
    (line,) = re.findall(rf"pulled model=heavy version={version} digest=\S+ (.*)", agent.log)
    return {name: int(size) for name, _, size in (part.partition("=") for part in line.split())}


async def test_nodes_of_a_site_spare_the_registry_and_tell_how_far_they_are(tmp_path: Path) -> None:
    first, second = (heavy(tmp_path / version, 12, version) for version in "12")
    async with (
        control_plane(tmp_path / "plane") as plane,
        plane.operator() as operator,
        # Slow enough for its progress to be seen.
        node(plane, tmp_path / "a", "a", site="here", store={"bandwidth_mbit_s": 60.0}) as a,
    ):
        await operator.publish(first)
        await operator.deploy("heavy", "1")
        half_way = await a.says("heavy", lambda r: 0 < r.status.pulled_bytes < r.status.pull_bytes)
        assert half_way.status.pull_bytes == first.manifest.size_bytes
        assert half_way.status.state == node_pb2.REPLICA_STATE_PULLING
        await a.serves("heavy", "1")
        assert brought(a, "1")["the_registry"] > 12 * MIB
        async with node(plane, tmp_path / "b", "b", site="here") as b:
            await b.serves("heavy", "1")
            assert brought(b, "1").keys() == {"a"}
            # Both at once: what crosses the WAN is shared out.
            await operator.publish(second)
            await operator.deploy("heavy", "2")
            await asyncio.gather(a.serves("heavy", "2"), b.serves("heavy", "2"))
            found = brought(a, "2"), brought(b, "2")
            assert sum(each["the_registry"] for each in found) <= 1.2 * 12 * MIB
            await refuses_others(b, first.manifest.files[0].digest)


async def refuses_others(agent: Node, digest: str) -> None:
    question = blob_pb2.ReadBlobRequest(digest=digest, size=1)
    for token in (None, agent.plane.token("client"), agent.plane.token("operator")):
        stub = blob_pb2_grpc.BlobServiceStub(agent.channel(token))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(stub.Read(question)))
        assert caught.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
