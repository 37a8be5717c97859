"""Whose price counts for a node: the operator's, else the feed's, else the node's own; each as long as it holds.

Pure: what time it is, is an argument. A price that has ended makes way for the next source, and the one that counts
then says so in its note.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from nearmesh_controlplane.prices.currencies import USD, Currencies, Money
from nearmesh_controlplane.prices.table import FeedPrice, PriceTable

Source = Literal["operator", "feed", "node"]

# A price that is so many times another, either way, is more likely a slip (a unit, a decimal point) than a market.
JUMP = 100.0
# The last moment that a date can name, the end of the year 9999, seconds since the epoch.
MAX_TIME_S = 253402300799.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What an hour of a node costs, and by whose word."""

    usd_per_hour: float = 0.0
    source: Source = "node"
    # The node is bought on spot terms.
    spot: bool = False
    # As it was given, where that was not in US dollars.
    amount: float = 0.0
    currency: str = ""
    # Seconds since the epoch; 0: no end.
    valid_until_s: float = 0.0
    # Why a source that goes before this one does not count, or what else is odd about it.
    note: str = ""


class Priced(Protocol):
    """What is known of a node before it has a price: its machine, its own word and the operator's."""

    @property
    def id(self) -> str: ...
    @property
    def region(self) -> str: ...
    @property
    def machine_type(self) -> str: ...
    @property
    def spot(self) -> bool: ...
    @property
    def own_usd_per_hour(self) -> float: ...
    @property
    def set_usd_per_hour(self) -> float | None: ...
    @property
    def set_amount(self) -> float | None: ...
    @property
    def set_currency(self) -> str | None: ...
    @property
    def set_until_s(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class _Offer:
    """A price that would count if none went before it. `money` None: the source has a row, and not for such terms."""

    source: Source
    money: Money | None
    valid_until_s: float = 0.0
    note: str = ""


def price_of(node: Priced, table: PriceTable, currencies: Currencies, now_s: float) -> Price:
    """The price that counts for the node now."""
    notes: list[str] = []
    for offer in _offers(node, table, currencies):
        if offer.valid_until_s and offer.valid_until_s <= now_s:
            notes.append(f"{_WHOSE[offer.source]} price ended {moment(offer.valid_until_s)}")
            continue
        if offer.note:
            notes.append(offer.note)
        if offer.money is not None:
            return _price(node, offer, offer.money, "; ".join(notes))
    raise AssertionError("the node's own price never ends")


_WHOSE: dict[Source, str] = {"operator": "the operator's", "feed": "the feed's", "node": "its own"}


def _price(node: Priced, offer: _Offer, money: Money, note: str) -> Price:
    foreign = money.currency != USD
    return Price(
        usd_per_hour=money.usd,
        source=offer.source,
        spot=node.spot,
        amount=money.amount if foreign else 0.0,
        currency=money.currency if foreign else "",
        valid_until_s=offer.valid_until_s,
        note=note,
    )


def _offers(node: Priced, table: PriceTable, currencies: Currencies) -> Iterator[_Offer]:
    """The one that goes before the others first; the node's own stands last and always holds."""
    if node.set_usd_per_hour is not None:
        yield _Offer("operator", _operators(node, node.set_usd_per_hour, currencies), node.set_until_s or 0.0)
    for row in (table.by_node.get(node.id), table.by_type.get((node.region, node.machine_type))):
        if row is not None:
            yield _from_feed(node, row)
    yield _Offer("node", Money(node.own_usd_per_hour, node.own_usd_per_hour, USD))


def _operators(node: Priced, usd_per_hour: float, currencies: Currencies) -> Money:
    """At today's rate; at that of when it was set where mesh.toml no longer has one."""
    if node.set_currency is None or node.set_amount is None:
        return Money(usd_per_hour, usd_per_hour, USD)
    rate = currencies.rate(node.set_currency)
    return Money(usd_per_hour if rate is None else node.set_amount * rate, node.set_amount, node.set_currency)


def _from_feed(node: Priced, row: FeedPrice) -> _Offer:
    """By the node's terms. A spot node without a spot price costs what it would on demand, which it will not exceed;
    a node on demand never gets a spot price, which it would."""
    if not node.spot:
        note = "" if row.on_demand else "the feed has a spot price for it alone"
        return _Offer("feed", row.on_demand, row.valid_until_s, note)
    note = "" if row.spot else "the feed has no spot price for it: that on demand counts"
    return _Offer("feed", row.spot or row.on_demand, row.valid_until_s, note)


def jumped(before: Price, after: Price) -> bool:
    """Whether somebody should look at it. From or to nothing is no jump: that is a price appearing, or a free node."""
    low, high = sorted((before.usd_per_hour, after.usd_per_hour))
    return low > 0 and high > low * JUMP


def moment(at_s: float) -> str:
    """For people, UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
