"""How fast traffic moves."""

from __future__ import annotations

import numpy as np
import pytest
from nearmesh_controlplane.routing.moves import JOINING_PART, JOINING_S, RAMP_PER_S, advance, joined

HELD, TARGET = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
WHOLE = np.zeros((1, 2), dtype=bool)


def moved(
    *, demand: float, broken: tuple[bool, bool] = (False, False), held: np.ndarray = HELD, elapsed_s: float = 1.0
) -> np.ndarray:
    """One row that goes from the first node to the second; each answers 100 per second."""
    return advance(
        held,
        TARGET,
        np.array([broken]),
        demand=np.array([demand]),
        load=np.full((1, 2), 0.01),
        capacity=np.ones(2),
        elapsed_s=elapsed_s,
    )


def test_traffic_that_is_small_for_the_new_node_moves_at_once() -> None:
    assert moved(demand=100 * RAMP_PER_S) == pytest.approx(TARGET)
    assert moved(demand=0.0) == pytest.approx(TARGET)


def test_large_traffic_moves_by_a_part_of_the_new_nodes_capacity_each_second() -> None:
    assert moved(demand=100.0) == pytest.approx(np.array([[1 - RAMP_PER_S, RAMP_PER_S]]))
    assert moved(demand=100.0, elapsed_s=0.5) == pytest.approx(np.array([[1 - RAMP_PER_S / 2, RAMP_PER_S / 2]]))
    assert moved(demand=100.0, elapsed_s=1e6) == pytest.approx(np.array([[1 - RAMP_PER_S, RAMP_PER_S]]))


def test_it_arrives() -> None:
    held, steps = HELD, 0
    while not np.allclose(held, TARGET):
        held, steps = moved(demand=100.0, held=held), steps + 1
        assert held.sum() == pytest.approx(1.0)
    assert steps == round(1 / RAMP_PER_S)


def test_what_is_broken_is_left_at_once() -> None:
    assert moved(demand=100.0, broken=(True, False)) == pytest.approx(TARGET)


def test_who_was_nowhere_begins_at_the_target() -> None:
    assert moved(demand=100.0, held=np.zeros((1, 2))) == pytest.approx(TARGET)


def test_of_what_is_broken_in_part_that_part_goes_and_the_rest_by_the_ramp() -> None:
    found = advance(
        np.array([[0.5, 0.5, 0.0]]),
        np.array([[0.0, 0.0, 1.0]]),
        np.array([[True, False, False]]),
        demand=np.array([100.0]),
        load=np.full((1, 3), 0.01),
        capacity=np.ones(3),
        elapsed_s=1.0,
    )
    assert found == pytest.approx(np.array([[0.0, 0.5, 0.5]]))


def test_several_rows_share_the_room_of_the_node_that_they_go_to() -> None:
    found = advance(
        np.array([[1.0, 0.0], [1.0, 0.0]]),
        np.array([[0.0, 1.0], [0.0, 1.0]]),
        np.zeros((2, 2), dtype=bool),
        demand=np.array([50.0, 50.0]),
        load=np.full((2, 2), 0.01),
        capacity=np.ones(2),
        elapsed_s=1.0,
    )
    assert found[:, 1] == pytest.approx([RAMP_PER_S, RAMP_PER_S])


def test_a_new_replica_has_a_part_of_its_capacity_and_then_all_of_it() -> None:
    found = joined(np.array([0.0, JOINING_S / 2, JOINING_S, np.inf]))
    assert found == pytest.approx([JOINING_PART, (1 + JOINING_PART) / 2, 1.0, 1.0])
