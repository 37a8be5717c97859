"""For which nodes a version is: sites, regions, and how many nodes of those. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Sites and regions, empty for all; with both, those sites that are in those regions."""

    sites: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    # So many of its nodes have the version, and the others do not; 0: all of them have it.
    replicas: int = 0

    def covers(self, site: str, region: str) -> bool:
        return (not self.sites or site in self.sites) and (not self.regions or region in self.regions)

    def covers_all_of(self, other: Scope) -> bool:
        """Whether every site that `other` is for is this one's too."""
        return _within(other.sites, self.sites) and _within(other.regions, self.regions)

    def __str__(self) -> str:
        place = ", ".join(self.sites) or "all sites"
        if self.regions:
            place = f"{place} in {', '.join(self.regions)}" if self.sites else ", ".join(self.regions)
        return f"{self.replicas} of the nodes of {place}" if self.replicas else place


def _within(inner: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    return not outer or (bool(inner) and set(inner) <= set(outer))
