"""The prices of one feed, as they are looked up: by node, by region and machine type, by pair of regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nearmesh_controlplane.prices.currencies import Money

# In a pair of regions: any other region.
ANY = "*"

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class FeedPrice:
    """One row: what a machine costs on either terms; None where the feed does not say."""

    on_demand: Money | None
    spot: Money | None
    # Seconds since the epoch; 0: no end.
    valid_until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Everything that one reading of a feed says."""

    by_node: Mapping[str, FeedPrice] = field(default_factory=dict)
    # By region and machine type.
    by_type: Mapping[Pair, FeedPrice] = field(default_factory=dict)
    # US dollars per GB, from region and to region.
    transfers: Mapping[Pair, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.by_node) + len(self.by_type) + len(self.transfers)


def transfer_usd_per_gb(from_region: str, to_region: str, *books: Mapping[Pair, float]) -> float:
    """The price of the most specific pair; of pairs that are equally specific, that of the first book; 0 without any.

    Data that stays in its region is free, unless that very pair has a price.
    """
    pairs = [(from_region, to_region)]
    if from_region != to_region:
        pairs += [(from_region, ANY), (ANY, to_region), (ANY, ANY)]
    return next((book[pair] for pair in pairs for book in books if pair in book), 0.0)
