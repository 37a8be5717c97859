"""A model that nobody asks for, on real agents: out of memory, off the nodes, and back for the next request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nearmesh.client import connect
from nearmesh.errors import NotReady
from nearmesh.v1 import catalog_pb2, node_pb2
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import REGION, ControlPlane, control_plane, node, until

# The package's own policy; the control plane has to be up for ten seconds as well.
IDLE = "\n[idle]\nunload_after_s = 2\nscale_to_zero_after_s = 4\n"
X = {"x": np.array([1.0, 2.0], np.float32)}


async def model(plane: ControlPlane) -> catalog_pb2.Model:
    async with plane.operator() as operator:
        return await operator.model("rare")


async def comes_to(plane: ControlPlane, nodes: set[str], *, cold: bool | None = None) -> catalog_pb2.Model:
    """Once these nodes and no others have it."""

    async def there() -> catalog_pb2.Model | None:
        found = await model(plane)
        replicas = {replica.node: replica.status for replica in found.replicas}
        as_said = replicas.keys() == nodes and all(cold in (None, status.cold) for status in replicas.values())
        return found if as_said else None

    found: catalog_pb2.Model = await until(there, within_s=40, what=f"{nodes} have it")
    return found


async def test_a_model_leaves_memory_then_its_nodes_and_comes_back_for_a_request(tmp_path: Path) -> None:
    async with (
        control_plane(tmp_path / "plane") as plane,
        node(plane, tmp_path / "a", "a", usd_per_hour=1.0) as one,
        node(plane, tmp_path / "b", "b", usd_per_hour=2.0) as other,
        plane.operator() as operator,
        connect(
            control_plane=plane.public,
            ca=plane.authority.ca_pem,
            token=plane.token(),
            region=REGION,
            state=False,
        ) as client,
    ):
        await operator.publish(adding(tmp_path / "rare", "rare", "1", 1.0, more=IDLE))
        await operator.deploy("rare", "1")
        for agent in (one, other):
            # A request would keep it awake for longer.
            await agent.says("rare", lambda replica: replica.status.state == node_pb2.REPLICA_STATE_READY)

        # It leaves memory, and all nodes but one, which answers whoever asks; for that it has to load it.
        kept = set((await until(lambda: asleep(plane), within_s=40, what="asleep")).kept)
        assert len(kept) == 1
        await comes_to(plane, kept, cold=True)
        answer = await client.infer("rare", X, deadline_s=10)
        assert answer["y"].tolist() == [2.0, 3.0] and answer.receipt.node in kept
        assert (await comes_to(plane, kept, cold=False)).asleep, "a single request brings nobody else back"

        # Nobody keeps it: a call that has no time is told how long it takes, and the next one is answered.
        await operator.set_idle("rare", keep=0)
        await comes_to(plane, set())
        with pytest.raises(NotReady, match="nobody asked for it for long; it is being brought back") as refused:
            await client.infer("rare", X, deadline_s=0.05)
        assert refused.value.retry_after_ms and refused.value.retry_after_ms >= 100
        answer = await client.infer("rare", X, deadline_s=10)
        assert answer["y"].tolist() == [2.0, 3.0]
        await comes_to(plane, {answer.receipt.node})

        # Requests that follow each other bring all back.
        for _ in range(6):
            await client.infer("rare", X, deadline_s=10)
        assert not (await comes_to(plane, {"a", "b"})).asleep

        done = [entry.action for entry in await operator.audit(100) if entry.subject == "rare"]
        done.reverse()
        assert [action for action in done if action in ("sleep", "bring back", "wake")] == [
            "sleep",
            "sleep",
            "bring back",
            "wake",
        ], "nothing flaps"


async def asleep(plane: ControlPlane) -> catalog_pb2.Model | None:
    found = await model(plane)
    return found if found.asleep else None
