"""Whose price counts, and until when."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from nearmesh_controlplane.prices.currencies import Currencies, Money
from nearmesh_controlplane.prices.rules import JUMP, Price, jumped, price_of
from nearmesh_controlplane.prices.table import FeedPrice, PriceTable, transfer_usd_per_gb

from nearmesh.errors import InvalidInput

NOW_S = 1000.0
CURRENCIES = Currencies({"EUR": 1.25})


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A node as the rule sees it; its own price is 9."""

    id: str = "n"
    region: str = "us-east1"
    machine_type: str = "g2"
    spot: bool = False
    own_usd_per_hour: float = 9.0
    set_usd_per_hour: float | None = None
    set_amount: float | None = None
    set_currency: str | None = None
    set_until_s: float | None = None


def usd(amount: float) -> Money:
    return Money(amount, amount, "USD")


def table(by_node: FeedPrice | None = None, by_type: FeedPrice | None = None) -> PriceTable:
    return PriceTable(
        {"n": by_node, "other": FeedPrice(usd(7), usd(7))} if by_node else {},
        {("us-east1", "g2"): by_type, ("us-west1", "g2"): FeedPrice(usd(7), usd(7))} if by_type else {},
    )


BOTH = FeedPrice(usd(2), usd(1))
ON_DEMAND, SPOT = FeedPrice(usd(2), None), FeedPrice(None, usd(1))
EUROS = FeedPrice(Money(2.5, 2.0, "EUR"), None)
OVER, LATER = replace(BOTH, valid_until_s=NOW_S), replace(BOTH, valid_until_s=NOW_S + 1)
SET, ENDED = {"set_usd_per_hour": 3.0}, {"set_usd_per_hour": 3.0, "set_until_s": NOW_S}
OPERATORS_END = "the operator's price ended 1970-01-01 00:16:40 UTC"
FEEDS_END = "the feed's price ended 1970-01-01 00:16:40 UTC"

# What it shows; the node; the feed; what is expected of the price.
CASES: list[tuple[str, dict[str, Any], PriceTable, dict[str, Any]]] = [
    ("its own", {}, table(), {"usd_per_hour": 9.0, "source": "node"}),
    ("free", {"own_usd_per_hour": 0.0}, table(), {"usd_per_hour": 0.0, "source": "node"}),
    ("the feed's by node", {}, table(BOTH), {"usd_per_hour": 2.0, "source": "feed"}),
    ("the feed's by type", {}, table(None, BOTH), {"usd_per_hour": 2.0, "source": "feed"}),
    ("by node before by type", {}, table(FeedPrice(usd(5), None), BOTH), {"usd_per_hour": 5.0, "source": "feed"}),
    ("of another region", {"region": "europe-west1"}, table(None, BOTH), {"usd_per_hour": 9.0, "source": "node"}),
    ("of another type", {"machine_type": "g3"}, table(None, BOTH), {"usd_per_hour": 9.0, "source": "node"}),
    ("of no type", {"machine_type": ""}, table(None, BOTH), {"usd_per_hour": 9.0, "source": "node"}),
    ("the operator's", SET, table(BOTH, BOTH), {"usd_per_hour": 3.0, "source": "operator"}),
    ("for nothing", {"set_usd_per_hour": 0.0}, table(BOTH), {"usd_per_hour": 0.0, "source": "operator"}),
    ("spot", {"spot": True}, table(BOTH), {"usd_per_hour": 1.0, "source": "feed", "spot": True}),
    (
        "no spot price",
        {"spot": True},
        table(ON_DEMAND),
        {
            "usd_per_hour": 2.0,
            "source": "feed",
            "spot": True,
            "note": "the feed has no spot price for it: that on demand counts",
        },
    ),
    (
        "spot alone, on demand",
        {},
        table(SPOT),
        {"usd_per_hour": 9.0, "source": "node", "note": "the feed has a spot price for it alone"},
    ),
    (
        "spot alone by node, both by type",
        {},
        table(SPOT, BOTH),
        {"usd_per_hour": 2.0, "source": "feed", "note": "the feed has a spot price for it alone"},
    ),
    ("in euros", {}, table(EUROS), {"usd_per_hour": 2.5, "source": "feed", "amount": 2.0, "currency": "EUR"}),
    ("with an end", {}, table(LATER), {"usd_per_hour": 2.0, "source": "feed", "valid_until_s": NOW_S + 1}),
    ("ended", {}, table(OVER), {"usd_per_hour": 9.0, "source": "node", "note": FEEDS_END}),
    ("ended by node", {}, table(OVER, ON_DEMAND), {"usd_per_hour": 2.0, "source": "feed", "note": FEEDS_END}),
    ("the operator's ended", ENDED, table(), {"usd_per_hour": 9.0, "source": "node", "note": OPERATORS_END}),
    ("the feed follows", ENDED, table(BOTH), {"usd_per_hour": 2.0, "source": "feed", "note": OPERATORS_END}),
    (
        "both ended",
        ENDED,
        table(OVER),
        {"usd_per_hour": 9.0, "source": "node", "note": f"{OPERATORS_END}; {FEEDS_END}"},
    ),
    (
        "the operator's with an end",
        {**SET, "set_until_s": NOW_S + 1},
        table(BOTH),
        {"usd_per_hour": 3.0, "source": "operator", "valid_until_s": NOW_S + 1},
    ),
    (
        "the operator's at today's rate",
        {**SET, "set_amount": 4.0, "set_currency": "EUR"},
        table(),
        {"usd_per_hour": 5.0, "source": "operator", "amount": 4.0, "currency": "EUR"},
    ),
    (
        "the operator's in a currency that is gone",
        {**SET, "set_amount": 4.0, "set_currency": "CHF"},
        table(),
        {"usd_per_hour": 3.0, "source": "operator", "amount": 4.0, "currency": "CHF"},
    ),
]


@pytest.mark.parametrize(("node", "feed", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_whose_price_counts(node: dict[str, Any], feed: PriceTable, expected: dict[str, Any]) -> None:
    assert price_of(Machine(**node), feed, CURRENCIES, NOW_S) == Price(**expected)


@pytest.mark.parametrize(
    ("before", "after", "seen"),
    [(1, JUMP, False), (1, JUMP + 1, True), (JUMP + 1, 1, True), (0, 1e5, False), (1e5, 0, False), (2, 2, False)],
)
def test_a_jump_is_noticed(before: float, after: float, seen: bool) -> None:
    assert jumped(Price(usd_per_hour=before), Price(usd_per_hour=after)) is seen


def test_currencies() -> None:
    assert CURRENCIES.money(2.0, "EUR") == Money(2.5, 2.0, "EUR")
    assert CURRENCIES.money(2.0, "USD") == usd(2.0)
    for amount in (-1.0, math.nan, math.inf, 1e6):
        for currency in ("EUR", "USD"):
            with pytest.raises(InvalidInput, match="is not between 0 and 1,000,000"):
                CURRENCIES.money(amount, currency)
    with pytest.raises(InvalidInput, match="not between"):
        CURRENCIES.money(9e5, "EUR")
    with pytest.raises(InvalidInput, match=r"'CHF' has no rate; those with one are EUR, USD: add it to \[currencies\]"):
        CURRENCIES.money(1.0, "CHF")


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"euro": 1.0}, "currency 'euro' is not three capital letters"),
        ({"EUR": 0.0}, "currencies.EUR is 0; expected US dollars for one EUR"),
        ({"EUR": -1.0}, "currencies.EUR is -1"),
        ({"EUR": math.nan}, "currencies.EUR is nan"),
        ({"EUR": math.inf}, "currencies.EUR is inf"),
        ({"USD": 2.0}, "currencies.USD is 2; all rates are in US dollars, so it is 1"),
        ({chr(65 + i // 26) + chr(65 + i % 26) + "A": 1.0 for i in range(201)}, "currencies has 201 entries"),
    ],
)
def test_what_is_no_rate(rates: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Currencies(rates)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (("a", "b"), 1.0),  # the pair itself
        (("a", "c"), 2.0),  # from a
        (("c", "b"), 3.0),  # to b
        (("c", "d"), 4.0),  # any
        (("c", "c"), 0.0),  # stays where it is
        (("z", "z"), 6.0),  # unless that very pair has a price
        (("x", "y"), 5.0),  # the feed's pair is more specific than the operator's any
        (("p", "q"), 8.0),  # both have the pair: the operator's
    ],
)
def test_the_most_specific_transfer_price_counts(ends: tuple[str, str], expected: float) -> None:
    operators = {("a", "b"): 1.0, ("a", "*"): 2.0, ("*", "*"): 4.0, ("z", "z"): 6.0, ("p", "q"): 8.0}
    feeds = {("*", "b"): 3.0, ("x", "y"): 5.0, ("p", "q"): 7.0}
    assert transfer_usd_per_gb(*ends, operators, feeds) == expected
    assert transfer_usd_per_gb(*ends, {}, {}) == 0.0
