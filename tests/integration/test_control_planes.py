"""Two control planes over one PostgreSQL: any of them answers, one leads, and what one was told the other knows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from nearmesh.client.admin import AdminClient
from nearmesh.errors import Unreachable
from nearmesh.membership import Membership
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import Pair, node, pair, until
from tests.postgres import Postgres

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory, database_server: Postgres) -> AsyncIterator[Pair]:
    async with pair(tmp_path_factory.mktemp("pair"), database_server.new_database()) as found:
        yield found


async def test_one_leads_and_both_say_so(both: Pair) -> None:
    leader = await both.leader()
    for plane in both.planes.values():
        async with plane.operator() as operator:

            async def listed() -> bool:
                found = await operator.control_planes()
                return [one.id for one in found] == ["a", "b"] and sum(one.leader for one in found) == 1

            await until(listed, what=f"both are listed by {plane.public}")
            (one,) = [one for one in await operator.control_planes() if one.leader]
            assert (one.public_address, one.mesh_address, one.http_address) == (leader.public, leader.mesh, leader.http)
            assert one.term >= 1


async def test_an_operator_reaches_whichever_is_there(both: Pair) -> None:
    leader = await both.leader()
    for known in (f"127.0.0.1:1,{leader.public}", f"{leader.public}, 127.0.0.1:1"):
        async with AdminClient(known, leader.authority.ca_pem, leader.token("operator")) as operator:
            assert len(await operator.control_planes()) == 2
    with pytest.raises(Unreachable, match=r"at any of 127\.0\.0\.1:1, 127\.0\.0\.1:2"):
        async with AdminClient("127.0.0.1:1,127.0.0.1:2", leader.authority.ca_pem, leader.token("operator")):
            pass


async def test_a_node_is_sent_on_to_the_leader_and_keeps_the_list(both: Pair, tmp_path: Path) -> None:
    leader = await both.leader()
    follower = both.other(leader)
    async with node(follower, tmp_path, "sent-on") as agent:
        await agent.logged(f"does not lead; '{leader.name}' does, at {leader.public} and {leader.mesh}")
        membership = Membership.read(agent.data)
        assert membership and set(membership.control_plane_mesh.split(",")) == {leader.mesh, follower.mesh}


@pytest.mark.parametrize("by", ["leader", "follower"])
async def test_what_one_was_told_the_other_knows(both: Pair, tmp_path: Path, by: str) -> None:
    leader = await both.leader()
    plane = leader if by == "leader" else both.other(leader)
    await plane.machine(tmp_path / by, by)
    async with plane.operator() as told, both.other(plane).operator() as asked:
        await told.set_price(by, 2.5)
        await told.publish(adding(tmp_path / f"p-{by}", f"p-{by}", "1", 1.0))
        await told.set_policy(f"p-{by}", objective="nearest", deadline_ms=70.0)
        await told.deploy(f"p-{by}", "1")

        async def known() -> bool:
            prices = {node.id: node.usd_per_hour for node in await asked.nodes()}
            models = {model.name: model for model in await asked.models()}
            model = models.get(f"p-{by}")
            if prices.get(by) != 2.5 or model is None:
                return False
            return (model.objective, model.deadline_ms, len(model.deployments)) == ("nearest", 70.0, 1)

        await until(known, within_s=5, what=f"what the {by} was told, the other knows")
