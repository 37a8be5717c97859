"""A machine of the mesh: the durable facts about it, and the price that counts at present."""

from __future__ import annotations

import time
from dataclasses import dataclass

from nearmesh_controlplane.prices.currencies import Currencies
from nearmesh_controlplane.prices.rules import Price, price_of
from nearmesh_controlplane.prices.table import PriceTable

# Of a node that nobody has looked up a price for yet.
UNPRICED = Price()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The durable facts about one node or gateway."""

    id: str
    kind: str
    site: str
    region: str
    joined_at_s: float
    public_address: str = ""
    mesh_address: str = ""
    metrics_address: str = ""
    hardware: str = ""
    agent_version: str = ""
    # Of the machine, and what its own configuration asks for it.
    machine_type: str = ""
    spot: bool = False
    keeps_vectors: bool = False
    own_usd_per_hour: float = 0.0
    # The operator's price, in US dollars and where need be as it was given; until when, seconds since the epoch.
    set_usd_per_hour: float | None = None
    set_amount: float | None = None
    set_currency: str | None = None
    set_until_s: float | None = None
    draining: bool = False
    cordoned: bool = False
    removed: bool = False
    # What counts of all prices, at present. Not durable: it is made of the facts above, a feed, and the time.
    price: Price = UNPRICED

    @property
    def usd_per_hour(self) -> float:
        """The price that counts: the operator's, else a feed's, else the node's own."""
        return self.price.usd_per_hour


def priced_without_a_feed(node: Node) -> Price:
    return price_of(node, PriceTable(), Currencies({}), time.time())
