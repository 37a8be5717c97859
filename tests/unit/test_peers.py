"""Which nodes measure which others: of other regions, a few at a time, and all of them in time."""

from __future__ import annotations

import pytest
from nearmesh_controlplane.routing.peers import PEERS, peers


def mesh(*counts: int) -> dict[str, str]:
    """So many nodes in each region."""
    return {f"n{region}-{number}": f"r{region}" for region, count in enumerate(counts) for number in range(count)}


@pytest.mark.parametrize("counts", [(1, 1, 1), (3, 1, 2), (1,) * 20, (10,) * 20, (1, 50), (30, 1, 1)])
def test_each_node_measures_a_few_others_of_other_regions(counts: tuple[int, ...]) -> None:
    regions = mesh(*counts)
    for turn in range(5):
        found = peers(regions, turn)
        assert set(found) == set(regions)
        for node, others in found.items():
            assert 0 < len(others) <= PEERS and len(set(others)) == len(others)
            assert all(regions[other] != regions[node] for other in others)


@pytest.mark.parametrize(("counts", "turns"), [((1, 1, 1), 1), ((1,) * 20, 3), ((10,) * 20, 1), ((1, 50), 7)])
def test_every_pair_of_regions_is_measured_within_a_few_turns(counts: tuple[int, ...], turns: int) -> None:
    regions = mesh(*counts)
    seen = set()
    for turn in range(100, 100 + turns):
        for node, others in peers(regions, turn).items():
            seen |= {(regions[node], regions[other]) for other in others}
    names = set(regions.values())
    assert seen == {(a, b) for a in names for b in names if a != b}


@pytest.mark.parametrize(("counts", "turns"), [((3, 1, 2), 2), ((1, 50), 8), ((10,) * 20, 60)])
def test_every_node_is_measured_from_every_other_region_in_time(counts: tuple[int, ...], turns: int) -> None:
    regions = mesh(*counts)
    seen: set[tuple[str, str]] = set()
    for turn in range(turns):
        for node, others in peers(regions, turn).items():
            seen |= {(regions[node], other) for other in others}
    assert seen == {(region, node) for region in set(regions.values()) for node in regions if regions[node] != region}


def test_alone_there_is_nobody_to_measure() -> None:
    assert peers({}, 0) == {}
    assert peers(mesh(3), 7) == {"n0-0": (), "n0-1": (), "n0-2": ()}
