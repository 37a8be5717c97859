"""Two control planes' memories over one database: each decides by what is written, not by what it saw last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.idle.book import IdleBook
from nearmesh_controlplane.peers import lease, told
from nearmesh_controlplane.peers.role import Self
from nearmesh_controlplane.peers.wire import connected
from nearmesh_controlplane.prices.book import Prices
from nearmesh_controlplane.prices.currencies import Currencies
from nearmesh_controlplane.prices.feed import FeedState
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.nodes import Registry, Sighting
from nearmesh_controlplane.routing.residency import ResidencyRules

from nearmesh.errors import AlreadyExists, ConfigError, InvalidInput, NotLeader
from nearmesh.oci import digest_bytes
from nearmesh.package import RoutePolicy
from nearmesh.v1 import node_pb2
from tests.control_plane_state import LEASE_S, Clock, State, digest_of, manifest, replica, stored
from tests.postgres import Postgres


@dataclass
class Memory:
    """What one control plane holds."""

    url: str
    db: Database
    clock: Clock
    registry: Registry
    catalog: Catalog
    prices: Prices
    residency: ResidencyRules
    idle: IdleBook

    @classmethod
    async def of(cls, url: str) -> Memory:
        db, clock, changes = Database.at(url), Clock(), Generation()
        prices = Prices(db, changes, Currencies({}), FeedState())
        catalog = Catalog(db, changes)
        found = cls(
            url,
            db,
            clock,
            Registry(db, changes, LEASE_S, clock),
            catalog,
            prices,
            ResidencyRules(db, changes),
            IdleBook(db, changes, catalog, clock),
        )
        await found.registry.restore()
        await found.refresh()
        return found

    async def refresh(self) -> None:
        """As when it was told of what the other one wrote."""
        await self.registry.refresh()
        await self.catalog.restore()
        await self.prices.restore()
        await self.residency.restore()
        await self.idle.restore()

    async def publish(self, model: str, version: str = "1") -> None:
        await self.catalog.add(manifest(model, version), digest_of(model, version), RoutePolicy(), stored)


@pytest.fixture
async def two(database_server: Postgres) -> AsyncIterator[tuple[Memory, Memory]]:
    url = database_server.new_database()
    async with AsyncExitStack() as stack:
        found = [await Memory.of(url) for _ in range(2)]
        for memory in found:
            stack.callback(memory.db.close)
        one, other = found
        await _join(one, "n")
        await one.publish("m")
        await other.refresh()
        yield one, other


async def _join(memory: Memory, name: str) -> None:
    await State.join(memory, name)  # type: ignore[arg-type]


async def test_a_price_set_back_to_what_the_other_one_still_believes_is_written(two: tuple[Memory, Memory]) -> None:
    one, other = two
    await one.registry.set_price("n", 1.0)
    await other.refresh()
    await one.registry.set_price("n", 2.0)
    # The other one has not heard of 2, and is told 1, which to it is no change.
    assert (await other.registry.set_price("n", 1.0)).usd_per_hour == 1.0
    await one.refresh()
    assert one.registry.get("n").usd_per_hour == 1.0


async def test_two_who_change_different_things_of_one_node_keep_both(two: tuple[Memory, Memory]) -> None:
    one, other = two
    await one.registry.set_price("n", 2.0)
    drained = await other.registry.drain("n", undo=False)
    assert (drained.draining, drained.usd_per_hour) == (True, 2.0)
    assert (await one.registry.cordon("n", undo=False)).draining


async def test_two_who_change_different_things_of_one_policy_keep_both(two: tuple[Memory, Memory]) -> None:
    one, other = two
    await one.catalog.set_policy("m", "nearest", 0.0)
    policy = await other.catalog.set_policy("m", "", 70.0)
    assert (policy.objective, policy.deadline_ms) == ("nearest", 70.0)


async def test_rules_and_transfer_prices_are_written_whatever_was_believed(two: tuple[Memory, Memory]) -> None:
    one, other = two
    for memory, regions, usd in ((one, ["us-east1"], 0.1), (other, ["us-west1"], 0.2), (one, ["us-east1"], 0.1)):
        await memory.residency.set("europe-west1", regions)
        await memory.prices.set_transfer("us-east1", "*", usd)
    await other.refresh()
    assert other.residency.allowed("europe-west1") == {"us-east1"}
    assert other.prices.transfer_usd_per_gb("us-east1", "us-west1") == 0.1


async def test_of_two_who_publish_one_name_the_first_wins(two: tuple[Memory, Memory]) -> None:
    one, other = two
    await one.publish("x")
    # The same bytes are the same version, whoever was first.
    await other.publish("x")
    assert [v.digest for v in other.catalog.versions("x")] == [digest_of("x", "1")]
    await one.publish("y")
    with pytest.raises(AlreadyExists, match="y@1 is published with other contents"):
        await other.catalog.add(manifest("y", "1"), digest_bytes(b"else"), RoutePolicy(), stored)
    assert [v.digest for v in other.catalog.versions("y")] == [digest_of("y", "1")]


async def test_a_rollback_goes_back_from_what_was_deployed_last_wherever_that_was(two: tuple[Memory, Memory]) -> None:
    one, other = two
    for version in "23":
        await one.publish("m", version)
    await other.refresh()
    await one.catalog.deploy("m", "1", (), "me")
    await other.catalog.deploy("m", "2", (), "me")
    await one.catalog.deploy("m", "3", (), "me")
    # By its own memory the last one was 2.
    assert (await other.catalog.rollback("m", "me")).version == "2"
    await one.refresh()
    assert [d.version for d in one.catalog.deployments("m")] == ["2", "3", "2", "1"]


async def test_a_deployment_is_known_once_though_it_was_read_meanwhile(two: tuple[Memory, Memory]) -> None:
    one, _ = two
    await one.catalog.deploy("m", "1", (), "me")
    await one.refresh()
    await one.catalog.deploy("m", "1", (), "me")
    assert len(one.catalog.deployments("m")) == 2


# Who leads and who does not


async def test_what_nodes_report_is_written_by_the_leader_alone(two: tuple[Memory, Memory]) -> None:
    one, other = two
    hello = node_pb2.NodeHello(public_address="n:8001", usd_per_hour=3.0)
    with pytest.raises(NotLeader):
        await one.registry.hello("n", hello)
    one.registry.session_opened("n")
    with pytest.raises(NotLeader):
        await one.registry.status("n", node_pb2.NodeStatus(replicas=[replica()]))
    await other.refresh()
    assert (other.registry.get("n").public_address, dict(other.registry.replicas("n"))) == ("", {})


async def test_presence_is_what_the_leader_says_until_one_leads_oneself(two: tuple[Memory, Memory]) -> None:
    one, other = two
    one.registry.session_opened("n")
    other.registry.follow(one.registry.sightings())
    assert (other.registry.presence("n"), other.registry.last_seen_s("n")) == (
        "live",
        one.registry.last_seen_s("n"),
    )
    other.registry.follow({"n": Sighting("suspect", 5.0)})
    assert (other.registry.presence("n"), other.registry.last_seen_s("n")) == ("suspect", 5.0)
    await other.registry.restore()
    # It serves nothing that anybody has written down, so it is not missed.
    assert other.registry.presence("n") == "gone"


async def test_what_a_leader_does_with_an_idle_model_leaves_an_operator_s_word_elsewhere_alone(
    two: tuple[Memory, Memory],
) -> None:
    one, other = two
    await one.catalog.deploy("m", "1", (), "me")
    one.db.term = lambda: 1
    async with connected(one.url) as wire:
        await lease.claim(wire, Self(id="one", incarnation="1", public="", mesh="", http=""), LEASE_S)
    await other.idle.set_policy("m", keep=2, scale_to_zero_after_s=60.0)
    await one.idle.sleep("m", ("n",))
    assert one.idle.policy("m") == other.idle.policy("m")
    await other.refresh()
    assert other.idle.kept("m") == {"n"}
    with pytest.raises(NotLeader):
        await other.idle.wake("m")
    assert other.idle.kept("m") == {"n"}


async def test_what_a_leaving_node_says_is_told_too(two: tuple[Memory, Memory]) -> None:
    one, other = two
    one.db.term = lambda: 1
    async with connected(one.url) as wire:
        await lease.claim(wire, Self(id="one", incarnation="1", public="", mesh="", http=""), LEASE_S)
    one.registry.session_opened("n")
    status = {"draining": True, "notice": "spot", "notice_s": 30.0, "in_flight": 2, "sequences": 1, "drained": True}
    await one.registry.status("n", node_pb2.NodeStatus(**status))
    other.registry.follow(told.presence_from(told.presence_bytes(one.registry.sightings())))
    assert other.registry.under_way("n") == (2, 1, True)
    notice, left_s = other.registry.notice("n")
    assert notice == "spot" and 25 < left_s <= 31


async def test_two_who_insert_one_row_at_once_both_get_their_way(two: tuple[Memory, Memory]) -> None:
    one, other = two
    for number in range(20):
        client = f"region-{number}"
        await asyncio.gather(one.residency.set(client, ["a"]), other.residency.set(client, ["a"]))
        await asyncio.gather(one.prices.set_transfer(client, "*", 0.1), other.prices.set_transfer(client, "*", 0.1))
    await one.refresh()
    assert len(one.residency.all()) == 20


async def test_others_keys_are_refused(two: tuple[Memory, Memory], tmp_path: Path) -> None:
    one, other = two
    keys = [Authority.open("mesh", tmp_path / name).public for name in ("one", "other")]
    await one.db.run(told.check_authority, keys[0])
    await other.db.run(told.check_authority, keys[0])
    with pytest.raises(ConfigError, match="other keys"):
        await other.db.run(told.check_authority, keys[1])


async def test_a_bad_request_is_refused_as_before(two: tuple[Memory, Memory]) -> None:
    one, _ = two
    with pytest.raises(InvalidInput):
        await one.catalog.set_policy("m", "best", 0.0)
