"""All prices of the mesh: the rule over what operators, the feed and nodes say, and what transfers cost.

What operators say is durable: of nodes in the registry's rows, of transfers in a table of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from nearmesh.errors import InvalidInput, NotFound
from nearmesh.ids import check_label
from nearmesh.whole import whole
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.prices.currencies import Currencies, check_amount
from nearmesh_controlplane.prices.feed import FeedState
from nearmesh_controlplane.prices.rules import Price, Priced, price_of
from nearmesh_controlplane.prices.table import ANY, Pair, transfer_usd_per_gb

# Every pair of a hundred regions.
MAX_TRANSFERS = 10_000


@dataclass(frozen=True, slots=True)
class Transfer:
    """What it costs to move data from one region to another; either may be any."""

    from_region: str
    to_region: str
    usd_per_gb: float
    # Whose word this pair's price is; empty when it has none of its own, and that of a wider pair counts, or 0.
    source: Literal["operator", "feed", ""]


class Prices:
    """Reads from memory; what an operator changed is on disk before it is seen."""

    def __init__(self, db: Database, changes: Generation, currencies: Currencies, feed: FeedState) -> None:
        self._db = db
        self._changes = changes
        self.currencies = currencies
        self.feed = feed
        self._transfers: dict[Pair, float] = {}

    async def restore(self) -> None:
        """Reads the durable state; called before anyone is served."""
        self._transfers = await self._db.run(_read_transfers)

    # What is asked

    def usd_per_hour(self, node: Priced, now_s: float) -> Price:
        """What an hour of the node costs, `now_s` seconds after the epoch."""
        return price_of(node, self.feed.table, self.currencies, now_s)

    def transfer_usd_per_gb(self, from_region: str, to_region: str) -> float:
        """The most specific price; between equals the operator's; 0 where nobody gave one."""
        return transfer_usd_per_gb(from_region, to_region, self._transfers, self.feed.table.transfers)

    def transfers(self) -> list[Transfer]:
        """Those of operators, and of the feed where no operator gave that very pair another."""
        found = {pair: Transfer(*pair, usd, "feed") for pair, usd in self.feed.table.transfers.items()}
        found |= {pair: Transfer(*pair, usd, "operator") for pair, usd in self._transfers.items()}
        return [found[pair] for pair in sorted(found)]

    # What changes

    def take(self, feed: FeedState) -> None:
        """The feed's new state. Prices of nodes follow when the registry looks at them next."""
        moved = feed.table.transfers != self.feed.table.transfers
        self.feed = feed
        if moved:
            self._changes.bump()

    @whole
    async def set_transfer(self, from_region: str, to_region: str, usd_per_gb: float) -> Transfer:
        """Raises InvalidInput."""
        pair = _checked(from_region, to_region)
        check_amount(usd_per_gb, "US dollars per GB")
        if pair not in self._transfers and len(self._transfers) >= MAX_TRANSFERS:
            raise InvalidInput(f"{MAX_TRANSFERS} pairs of regions have a price; say the common one with {ANY!r}")
        # Where the database is shared, another control plane may have changed it a moment ago.
        if self._db.shared or self._transfers.get(pair) != usd_per_gb:
            await self._db.run(_write_transfer, pair, usd_per_gb)
            self._transfers[pair] = usd_per_gb
            self._changes.bump()
        return Transfer(*pair, usd_per_gb, "operator")

    @whole
    async def unset_transfer(self, from_region: str, to_region: str) -> Transfer:
        """Takes the operator's price back; what counts now is in the answer. Raises NotFound, InvalidInput."""
        pair = _checked(from_region, to_region)
        if pair not in self._transfers:
            raise NotFound(
                f"no operator set a price from {from_region} to {to_region}; `nearmesh price list` shows all"
            )
        await self._db.run(_write_transfer, pair, None)
        self._transfers.pop(pair, None)
        self._changes.bump()
        return Transfer(*pair, self.transfer_usd_per_gb(*pair), "feed" if pair in self.feed.table.transfers else "")


def _checked(from_region: str, to_region: str) -> Pair:
    for what, region in (("from_region", from_region), ("to_region", to_region)):
        if region != ANY:
            check_label(what, region)
    return from_region, to_region


def _read_transfers(connection: sa.Connection) -> dict[Pair, float]:
    rows = connection.execute(sa.select(tables.transfer_prices))
    return {(row.from_region, row.to_region): row.usd_per_gb for row in rows}


def _write_transfer(connection: sa.Connection, pair: Pair, usd_per_gb: float | None) -> None:
    """None takes it away."""
    table = tables.transfer_prices
    row = sa.and_(table.c.from_region == pair[0], table.c.to_region == pair[1])
    if usd_per_gb is None:
        connection.execute(sa.delete(table).where(row))
        return
    changed = connection.execute(sa.update(table).where(row).values(usd_per_gb=usd_per_gb))
    if not changed.rowcount:
        values = {"from_region": pair[0], "to_region": pair[1], "usd_per_gb": usd_per_gb}
        connection.execute(sa.insert(table).values(**values))
