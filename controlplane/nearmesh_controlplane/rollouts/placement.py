"""Which nodes get a version of which only so many replicas are wanted: by demand and price, spread over sites. Pure.

Nodes that have it and stay keep it: a placement is repaired, never made anew, so that nothing moves for a small price.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node of the scope that may have the version."""

    node: str
    site: str
    region: str
    usd_per_hour: float = 0.0


def placed(
    replicas: int, candidates: Sequence[Candidate], demand: Mapping[str, float], kept: Iterable[str] = ()
) -> tuple[str, ...]:
    """At most `replicas` of the candidates, by name; `demand` is requests per second by the clients' region.

    One after the other: first the sites that have fewest, then the region with most demand for each replica that it has
    (as D'Hondt's method deals out seats), then the cheapest.
    """
    there = {candidate.node: candidate for candidate in candidates}
    found = [there[node] for node in dict.fromkeys(kept) if node in there][:replicas]
    sites, regions = Counter(c.site for c in found), Counter(c.region for c in found)
    left = [candidate for candidate in candidates if candidate not in found]
    while left and len(found) < replicas:
        best = min(
            left,
            key=lambda c: (
                sites[c.site],
                -demand.get(c.region, 0.0) / (1 + regions[c.region]),
                regions[c.region],
                c.usd_per_hour,
                c.node,
            ),
        )
        left.remove(best)
        found.append(best)
        sites[best.site] += 1
        regions[best.region] += 1
    return tuple(sorted(candidate.node for candidate in found))
