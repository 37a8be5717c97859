"""Where requests go at present, over regions and nodes that come and go."""

from __future__ import annotations

import numpy as np
import pytest
from nearmesh_controlplane.routing.held import Held

NAME = ("m", "nearest")


def filled() -> Held:
    held = Held()
    held.remember(NAME, ("eu", "us"), ("a", "b"), np.array([[0.25, 0.75], [1.0, 0.0]]))
    return held


@pytest.mark.parametrize(
    ("regions", "nodes", "expected"),
    [
        (("eu", "us"), ("a", "b"), [[0.25, 0.75], [1.0, 0.0]]),
        (("us", "eu"), ("b", "a"), [[0.0, 1.0], [0.75, 0.25]]),
        (("asia", "eu", "us"), ("a", "b"), [[0.0, 0.0], [0.25, 0.75], [1.0, 0.0]]),
        (("eu",), ("b", "new"), [[0.75, 0.0]]),
        ((), (), np.zeros((0, 0))),
    ],
)
def test_shares_follow_their_region_and_their_node(
    regions: tuple[str, ...], nodes: tuple[str, ...], expected: list[list[float]]
) -> None:
    assert filled().shares(NAME, regions, nodes) == pytest.approx(np.array(expected))


def test_what_is_unknown_is_nowhere() -> None:
    assert not filled().shares(("m", "cheapest"), ("eu",), ("a", "b")).any()


def test_who_goes_on_knows_what_it_was_told_alone() -> None:
    held = filled()
    held.resume({("us", "n", "nearest"): {"b": 0.4, "a": 0.6}, ("eu", "n", "nearest"): {}})
    assert held.shares(("n", "nearest"), ("eu", "us"), ("a", "b")) == pytest.approx(np.array([[0, 0], [0.6, 0.4]]))
    assert not held.shares(NAME, ("eu",), ("a", "b")).any()


def test_models_that_are_gone_are_forgotten() -> None:
    held = filled()
    held.keep_only({"m"})
    assert held.shares(NAME, ("eu",), ("a", "b")).any()
    held.keep_only({"n"})
    assert not held.shares(NAME, ("eu",), ("a", "b")).any()
