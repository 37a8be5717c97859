"""Which nodes measure the way to which others: a few each, by turns, so that all pairs of regions get their turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Of each node at a time: an open connection each, and a tiny call every few seconds.
PEERS = 8
# A turn is long enough for some twenty measurements, which speak for some turns more.
TURN_S = 60.0


def peers(regions: Mapping[str, str], turn: int) -> dict[str, tuple[str, ...]]:
    """By node id the nodes that it measures in this turn, each of another region; `regions` are all nodes' regions.

    With each turn a node goes on to the next regions, and within each to the next node. Nodes of one region begin at
    different ones, so that together they are round sooner.
    """
    by_region: dict[str, list[str]] = {}
    for node in sorted(regions):
        by_region.setdefault(regions[node], []).append(node)
    names = sorted(by_region)
    found: dict[str, tuple[str, ...]] = {}
    for region, nodes in by_region.items():
        others = [name for name in names if name != region]
        for place, node in enumerate(nodes):
            found[node] = _of_one(others, by_region, turn * len(nodes) + place)
    return found


def _of_one(others: Sequence[str], by_region: Mapping[str, Sequence[str]], step: int) -> tuple[str, ...]:
    """The step's share of all (region, node) pairs, as if they stood in rounds: each region once, then once more."""
    if not others:
        return ()
    most = max(len(by_region[name]) for name in others)
    chosen: dict[str, None] = {}
    for number in range(step * PEERS, (step + 1) * PEERS):
        round_, at = divmod(number, len(others))
        nodes = by_region[others[at]]
        chosen[nodes[round_ % most % len(nodes)]] = None
    return tuple(chosen)
