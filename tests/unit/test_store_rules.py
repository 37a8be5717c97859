"""The smaller decisions about a node's models: room on the disk, the limit on bandwidth."""

from __future__ import annotations

import pytest
from nearmesh_agent.config import StoreConfig
from nearmesh_agent.store.bandwidth import BURST_S, Bandwidth
from nearmesh_agent.store.budget import Room, Stored, evict

from nearmesh.errors import InvalidInput, StorageFull

OLD, NEW, LEAST = Stored("old", 10, 2.0), Stored("new", 10, 3.0), Stored("least", 10, 1.0)


@pytest.mark.parametrize(
    ("room", "left"),
    [
        (Room(0, 100, 0, 0), 100),
        (Room(0, 100, 0, 30), 70),
        (Room(50, 100, 60, 30), 10),
        (Room(50, 100, 1000, 30), 70),
        (Room(70, 100, 60, 0), 0),
        (Room(0, 10, 0, 30), 0),
    ],
)
def test_what_is_left_is_bounded_by_the_budget_and_the_disk(room: Room, left: int) -> None:
    assert room.left_bytes == left


@pytest.mark.parametrize(
    ("need", "needed", "gone"),
    [
        (5, (), []),
        (15, (), [LEAST]),
        (25, (), [LEAST, OLD]),
        (25, ("least",), [OLD, NEW]),
        (15, ("least", "old"), [NEW]),
    ],
)
def test_the_least_recently_wanted_makes_room(need: int, needed: tuple[str, ...], gone: list[Stored]) -> None:
    assert evict(Room(30, 5, 0, 0), need, [OLD, NEW, LEAST], needed, "m@2") == gone


def test_what_does_not_fit_whatever_goes_is_told_with_figures_and_remedies() -> None:
    with pytest.raises(StorageFull) as caught:
        evict(Room(30 * 2**20, 0, 64 * 2**20, 2**20), 2**30, [OLD], [], "m@2")
    for part in ("m@2 needs 1024 MiB", "models take 30 MiB", "disk_budget_mib = 64", "min_free_mib = 1", "Raise"):
        assert part in caught.value.message


def test_reads_are_spread_over_time_and_a_pause_saves_up_little() -> None:
    now_s = 100.0
    bucket = Bandwidth(1000.0, lambda: now_s)
    waits = [bucket.take(100) for _ in range(5)]
    assert waits == pytest.approx([0.1 - BURST_S, 0.1, 0.2, 0.3, 0.4])
    now_s += 60
    assert bucket.take(100) == pytest.approx(0.0) and bucket.take(1000) == pytest.approx(1.0)
    assert Bandwidth(0).take(10**9) == 0.0


@pytest.mark.parametrize("key", ["bandwidth_mbit_s", "disk_budget_mib", "min_free_mib"])
def test_settings_are_not_negative(key: str) -> None:
    with pytest.raises(InvalidInput, match=key):
        StoreConfig(**{key: -1})
