"""What moving data costs, in a real mesh: nodes count bytes, and a price per GB keeps large requests at home."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from nearmesh.v1 import route_pb2
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import REGION, ControlPlane, Node, control_plane, question, until

FAR = "us-east1"
LARGE = 50_000


async def first(plane: ControlPlane, model: str) -> route_pb2.Candidate:
    async with plane.operator() as operator:
        return (await operator.explain(model, REGION)).candidates[0]


async def test_a_price_for_transfers_moves_large_requests_and_no_small_ones(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(control_plane(tmp_path / "plane"))
        operator = await stack.enter_async_context(plane.operator())
        home = Node(plane, tmp_path / "home", "home", usd_per_hour=5.0)
        far = Node(plane, tmp_path / "far", "far", region=FAR, usd_per_hour=1.0)
        for agent in (home, far):
            stack.push_async_callback(agent.stop)
            await agent.start()
        for model in ("small", "large"):
            await operator.publish(adding(tmp_path / model, model, "1", 1.0))
            await operator.deploy(model, "1")
            await operator.set_policy(model, deadline_ms=5000)
        for agent in (home, far):
            stub = agent.stub()
            for model, length in (("small", 2), ("large", LARGE)):
                await agent.serves(model, "1")
                for _ in range(20):
                    await stub.ModelInfer(question(model, x=(1.0,) * length), timeout=5)

        async def where(model: str, node: str) -> bool:
            return (await first(plane, model)).node == node

        for model in ("small", "large"):
            await until(lambda model=model: where(model, "far"), what=f"{model} goes where it is cheap")
        # For the answers, which leave the region of the node.
        await operator.set_transfer_price(FAR, REGION, 0.1)
        await until(lambda: where("large", "home"), what="what is large stays at home")
        dear = next(c for c in (await operator.explain("large", REGION)).candidates if c.node == "far")
        # 200,000 bytes of a thousand answers, less what the small questions of `serves` make of the mean.
        assert 0.01 < dear.transfer_usd_per_1000 < 0.0205
        small = await first(plane, "small")
        assert small.node == "far" and 0 < small.transfer_usd_per_1000 < 0.00002
        await operator.unset_transfer_price(FAR, REGION)
        await until(lambda: where("large", "far"), what="and goes back")
        assert "Traceback" not in plane.log
