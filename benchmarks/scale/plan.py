"""What a mesh of a given size consists of: names, places, prices, and which streams a price change concerns. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from nearmesh.regions import COORDINATES
from nearmesh.routing import OBJECTIVES

MESH = "scale"
REGIONS = tuple(sorted(COORDINATES))
HARDWARE = ("small", "medium", "large")
# The node whose price changes; it has every model but a few, whose streams must hear nothing.
REPRICED = "n-0000"
SPARED_SHARE = 0.05
DEAR_USD, CHEAP_USD = 9.0, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a mesh is. One node at each site."""

    sites: int = 200
    models: int = 100
    streams: int = 5000
    connections: int = 50
    # How many sites have each model; 0 for all of them.
    spread: int = 0

    @property
    def nodes(self) -> list[str]:
        return [f"n-{number:04}" for number in range(self.sites)]

    @property
    def model_names(self) -> list[str]:
        return [f"model-{number:03}" for number in range(self.models)]

    @property
    def spared(self) -> frozenset[str]:
        """Models that the repriced node does not have."""
        return frozenset(self.model_names[self.models - max(1, round(SPARED_SHARE * self.models)) :])

    def has(self, node: int, model: int) -> bool:
        """Whether the node has the model."""
        if not node:
            return self.model_names[model] not in self.spared
        spread = self.spread or self.sites
        return (node + 7 * model) % self.sites < spread

    def stream(self, number: int) -> tuple[str, str]:
        """Region and model of one stream: all pairs in turn."""
        return REGIONS[number % len(REGIONS)], self.model_names[number // len(REGIONS) % self.models]

    def concerned(self, number: int) -> bool:
        """Whether the stream has to hear of the repriced node."""
        return self.stream(number)[1] not in self.spared


def region(node: int) -> str:
    """Sites are spread over all regions."""
    return REGIONS[node % len(REGIONS)]


def usd_per_hour(node: int) -> float:
    """Between half a dollar and two and a half; the repriced node begins as the dearest."""
    return DEAR_USD if not node else 0.5 + (node * 37 % 101) / 50


def service_ms(node: int, model: int) -> tuple[float, float]:
    """Median and 95th percentile of a replica's time."""
    base = 2.0 + model % 10 + 4.0 * (node % len(HARDWARE))
    return base, 1.5 * base


def clusters(model: str) -> list[str]:
    """Those that a gRPC client asks for after it has read the model's listener."""
    return [model, *(f"{model}/{objective}" for objective in sorted(OBJECTIVES))]
