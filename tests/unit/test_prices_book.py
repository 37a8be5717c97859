"""Prices as the control plane keeps them: what is durable, what wakes those who route, and what it cannot be told."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from nearmesh_controlplane.admin import MAX_PRICE_S, AdminServicer
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.prices import book
from nearmesh_controlplane.prices.currencies import Money
from nearmesh_controlplane.prices.feed import FeedState
from nearmesh_controlplane.prices.rules import Price
from nearmesh_controlplane.prices.table import FeedPrice, PriceTable
from nearmesh_controlplane.routing import residency

from nearmesh import rpc
from nearmesh.errors import InvalidInput, NotFound
from nearmesh.v1 import admin_pb2, node_pb2
from tests.control_plane_state import State, state


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[State]:
    async with state(tmp_path) as found:
        await found.node("n", "us-east1", usd=9.0)
        yield found


@pytest.fixture
def admin(mesh: State) -> AdminServicer:
    rpc._caller.set(rpc.Identity("me", "operator"))
    nothing = cast(Any, None)
    return AdminServicer(
        nothing,
        nothing,
        mesh.registry,
        mesh.catalog,
        Audit(mesh.db),
        nothing,
        prices=mesh.prices,
        residency=mesh.residency,
    )


def says(mesh: State, usd: float, *, spot: float | None = None, until_s: float = 0.0, **transfers: float) -> None:
    """The feed prices g2 in us-east1, and ways from a region to any other."""
    row = FeedPrice(Money(usd, usd, "USD"), None if spot is None else Money(spot, spot, "USD"), until_s)
    ways = {(region, "*"): price for region, price in transfers.items()}
    mesh.prices.take(FeedState(source="f", table=PriceTable({}, {("us-east1", "g2"): row}, ways), read_at_s=1.0))
    mesh.registry.reprice()


async def is_a(mesh: State, machine_type: str, *, spot: bool = False) -> None:
    await mesh.registry.hello("n", node_pb2.NodeHello(usd_per_hour=9.0, machine_type=machine_type, spot=spot))


def price(mesh: State) -> Price:
    return mesh.registry.get("n").price


async def test_a_feed_prices_nodes_by_what_they_say_of_themselves(mesh: State) -> None:
    says(mesh, 2.0, spot=0.5)
    assert price(mesh) == Price(usd_per_hour=9.0)
    await is_a(mesh, "g2")
    assert price(mesh) == Price(usd_per_hour=2.0, source="feed")
    await is_a(mesh, "g2", spot=True)
    assert price(mesh) == Price(usd_per_hour=0.5, source="feed", spot=True)
    assert mesh.registry.get("n").usd_per_hour == 0.5
    with pytest.raises(InvalidInput, match="machine_type 'g 2' must be"):
        await is_a(mesh, "g 2")


async def test_only_a_price_that_moves_wakes_those_who_route(mesh: State) -> None:
    await is_a(mesh, "g2")
    seen = mesh.changes.value
    says(mesh, 2.0)
    assert mesh.changes.value == seen + 1
    says(mesh, 2.0, spot=1.0)
    mesh.registry.reprice()
    assert mesh.changes.value == seen + 1, "nobody's price is another"
    says(mesh, 2.0, a=0.1)
    assert mesh.changes.value == seen + 2, "what a transfer costs is"
    assert mesh.prices.transfer_usd_per_gb("a", "b") == 0.1


async def test_a_price_ends_with_time_and_the_next_one_counts(mesh: State) -> None:
    await is_a(mesh, "g2")
    says(mesh, 2.0, until_s=mesh.wall.now_s + 20)
    await mesh.registry.set_price("n", Money(5.0, 2.5, "EUR"), mesh.wall.now_s + 10)
    assert price(mesh) == Price(
        usd_per_hour=5.0, source="operator", amount=2.5, currency="EUR", valid_until_s=mesh.wall.now_s + 10
    )
    for _ in range(2):
        seen = mesh.changes.value
        mesh.wall.now_s += 9.9
        mesh.registry.end_prices(mesh.wall.now_s)
        assert mesh.changes.value == seen
        mesh.wall.now_s += 0.1
        mesh.registry.end_prices(mesh.wall.now_s)
        assert mesh.changes.value == seen + 1
    assert (price(mesh).usd_per_hour, price(mesh).source) == (9.0, "node")
    assert price(mesh).note == (
        "the operator's price ended 1970-01-01 00:16:50 UTC; the feed's price ended 1970-01-01 00:17:00 UTC"
    )
    await mesh.registry.set_price("n", 4.0)
    assert price(mesh) == Price(usd_per_hour=4.0, source="operator")
    await mesh.registry.unset_price("n")
    assert (price(mesh).usd_per_hour, price(mesh).note) == (9.0, "the feed's price ended 1970-01-01 00:17:00 UTC")


async def test_a_jump_is_taken_and_said(mesh: State, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    await is_a(mesh, "g2")
    says(mesh, 5.0)
    assert not caplog.records
    says(mesh, 501.0)
    assert mesh.registry.get("n").usd_per_hour == 501.0
    assert [r.message for r in caplog.records] == ["price node=n usd_per_hour=501 before=5 by=feed"]


async def test_p3_a_restart_keeps_what_operators_said(tmp_path: Path) -> None:
    async with state(tmp_path) as before:
        await before.node("n", "us-east1")
        await before.registry.hello("n", node_pb2.NodeHello(usd_per_hour=9.0, machine_type="g2", spot=True))
        await before.registry.set_price("n", Money(5.0, 2.5, "EUR"), 5000.0)
        await before.prices.set_transfer("us-east1", "*", 0.08)
        await before.prices.set_transfer("*", "*", 0.02)
        await before.prices.set_transfer("a", "b", 0.5)
        await before.prices.unset_transfer("a", "b")
        await before.residency.set("europe-west1", ["europe-west4", "europe-west1"])
        await before.residency.set("us-east1", ["us-east1"])
        await before.residency.set("us-east1", [])
        node, transfers, rules = before.registry.get("n"), before.prices.transfers(), before.residency.all()
    async with state(tmp_path) as after:
        assert after.registry.get("n") == node
        assert (node.price.usd_per_hour, node.price.valid_until_s, node.machine_type) == (5.0, 5000.0, "g2")
        assert after.prices.transfers() == transfers
        assert [(t.from_region, t.to_region, t.usd_per_gb) for t in transfers] == [
            ("*", "*", 0.02),
            ("us-east1", "*", 0.08),
        ]
        assert after.residency.all() == rules == [("europe-west1", frozenset({"europe-west1", "europe-west4"}))]
        assert after.residency.allowed("europe-west1") == frozenset({"europe-west1", "europe-west4"})
        assert after.residency.allowed("us-east1") is None


async def test_transfers_of_operators_and_of_the_feed(mesh: State) -> None:
    says(mesh, 1.0, a=0.1, b=0.2)
    await mesh.prices.set_transfer("a", "*", 0.5)
    listed = [(t.from_region, t.to_region, t.usd_per_gb, t.source) for t in mesh.prices.transfers()]
    assert listed == [("a", "*", 0.5, "operator"), ("b", "*", 0.2, "feed")]
    seen = mesh.changes.value
    await mesh.prices.set_transfer("a", "*", 0.5)
    assert mesh.changes.value == seen, "it is so already"
    assert await mesh.prices.unset_transfer("a", "*") == book.Transfer("a", "*", 0.1, "feed"), "the feed's counts again"
    assert mesh.changes.value == seen + 1
    await mesh.prices.set_transfer("a", "c", 0.7)
    await mesh.prices.set_transfer("*", "*", 0.3)
    assert await mesh.prices.unset_transfer("a", "c") == book.Transfer("a", "c", 0.1, ""), "that from a counts"
    assert await mesh.prices.unset_transfer("*", "*") == book.Transfer("*", "*", 0.0, "")


async def test_what_is_no_transfer(mesh: State, monkeypatch: pytest.MonkeyPatch) -> None:
    for usd in (-1.0, math.nan, math.inf, 1e6):
        with pytest.raises(InvalidInput, match="US dollars per GB is not between 0 and 1,000,000"):
            await mesh.prices.set_transfer("a", "b", usd)
    for ends in (("Mars!", "b"), ("a", "")):
        with pytest.raises(InvalidInput, match="must be 1 to 63 of a-z"):
            await mesh.prices.set_transfer(*ends, 1.0)
    with pytest.raises(NotFound, match="no operator set a price from a to b"):
        await mesh.prices.unset_transfer("a", "b")
    monkeypatch.setattr(book, "MAX_TRANSFERS", 1)
    await mesh.prices.set_transfer("a", "b", 1.0)
    await mesh.prices.set_transfer("a", "b", 2.0)
    with pytest.raises(InvalidInput, match="1 pairs of regions have a price; say the common one with '\\*'"):
        await mesh.prices.set_transfer("a", "c", 1.0)


async def test_what_is_no_rule_of_residency(mesh: State, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="client_region 'Mars!'"):
        await mesh.residency.set("Mars!", ["a"])
    with pytest.raises(InvalidInput, match="region 'Mars!'"):
        await mesh.residency.set("a", ["Mars!"])
    await mesh.residency.set("a", ["b"])
    seen = mesh.changes.value
    await mesh.residency.set("a", ["b", "b"])
    assert mesh.changes.value == seen, "it is so already"
    with pytest.raises(NotFound, match="no rule binds the clients of 'c'; those that are bound are a"):
        await mesh.residency.set("c", [])
    monkeypatch.setattr(residency, "MAX_RULES", 1)
    await mesh.residency.set("a", ["c"])
    with pytest.raises(InvalidInput, match="1 client regions are bound already"):
        await mesh.residency.set("b", ["c"])
    await mesh.residency.set("a", [])
    assert mesh.changes.value == seen + 2


# As operators ask for it


async def test_a_price_as_an_operator_gives_it(admin: AdminServicer, mesh: State) -> None:
    asked = admin_pb2.SetPriceRequest(node="n", usd_per_hour=2.5, currency="EUR", valid_for_s=3600)
    node = await admin.SetPrice(asked, None)
    assert (node.usd_per_hour, node.price_source, node.spot) == (5.0, "operator", False)
    (found,) = (await admin.ListPrices(admin_pb2.ListPricesRequest(), None)).nodes
    assert (found.node, found.source, found.amount, found.currency) == ("n", "operator", 2.5, "EUR")
    assert found.valid_until_s == mesh.registry.get("n").set_until_s
    node = await admin.SetPrice(admin_pb2.SetPriceRequest(node="n", unset=True), None)
    assert (node.usd_per_hour, node.price_source) == (9.0, "node")
    last, first = await Audit(mesh.db).latest(2)
    assert (first.action, first.subject, last.detail) == ("price", "n", "taken back")
    assert first.detail.startswith("2.5 EUR per hour until 20")


async def test_the_feed_as_an_operator_sees_it(admin: AdminServicer, mesh: State) -> None:
    says(mesh, 2.0, a=0.1)
    mesh.prices.take(FeedState(source="f", table=mesh.prices.feed.table, read_at_s=1.0, error="line 3: no"))
    answer = await admin.ListPrices(admin_pb2.ListPricesRequest(), None)
    assert answer.feed == admin_pb2.PriceFeed(source="f", read_at_s=1.0, prices=2, error="line 3: no")
    assert list(answer.transfers) == [
        admin_pb2.TransferPrice(from_region="a", to_region="*", usd_per_gb=0.1, source="feed")
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"usd_per_hour": 1, "currency": "CHF"}, "currency 'CHF' has no rate; those with one are EUR, USD"),
        ({"usd_per_hour": 1, "currency": "eur"}, "currency 'eur' has no rate"),
        ({"usd_per_hour": math.nan}, "a price of nan USD is not between"),
        ({"usd_per_hour": 9e5, "currency": "EUR"}, "a price of 1800000.0 US dollars per hour is not between"),
        ({"usd_per_hour": 1, "valid_for_s": -1}, "a price holds 0 to 31622400 s, not -1.0; 0 is without an end"),
        ({"usd_per_hour": 1, "valid_for_s": MAX_PRICE_S + 1}, "a price holds 0 to"),
        ({"usd_per_hour": 1, "valid_for_s": math.nan}, "a price holds 0 to"),
    ],
)
async def test_what_is_no_price(admin: AdminServicer, mesh: State, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await admin.SetPrice(admin_pb2.SetPriceRequest(node="n", **asked), None)
    assert said in caught.value.message
    assert price(mesh) == Price(usd_per_hour=9.0)
    assert await Audit(mesh.db).latest(1) == []


async def test_regions_as_an_operator_names_them(admin: AdminServicer, mesh: State) -> None:
    await mesh.publish("m", "1")
    both = admin_pb2.SetPolicyRequest(model="m", regions=["a"], any_region=True)
    with pytest.raises(InvalidInput, match="exclude each other"):
        await admin.SetPolicy(both, None)
    assert list((await admin.SetPolicy(admin_pb2.SetPolicyRequest(model="m", regions=["b", "a"]), None)).regions) == [
        "a",
        "b",
    ]
    assert list((await admin.SetPolicy(admin_pb2.SetPolicyRequest(model="m", deadline_ms=9), None)).regions) == [
        "a",
        "b",
    ]
    assert not (await admin.SetPolicy(admin_pb2.SetPolicyRequest(model="m", any_region=True), None)).regions
    rule = await admin.SetResidency(admin_pb2.SetResidencyRequest(client_region="c", regions=["b", "a"]), None)
    assert rule == admin_pb2.Residency(client_region="c", regions=["a", "b"])
    assert list((await admin.ListResidency(admin_pb2.ListResidencyRequest(), None)).rules) == [rule]
    await admin.SetResidency(admin_pb2.SetResidencyRequest(client_region="c"), None)
    assert not (await admin.ListResidency(admin_pb2.ListResidencyRequest(), None)).rules
    details = [entry.detail for entry in reversed(await Audit(mesh.db).latest(5))]
    assert details == [
        "cheapest-in-time, 300.0 ms, a, b",
        "cheapest-in-time, 9.0 ms, a, b",
        "cheapest-in-time, 9.0 ms, any region",
        "only a, b",
        "any region",
    ]
