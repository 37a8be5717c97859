"""What the live run makes of its calls: when a dead or frozen node was left."""

from __future__ import annotations

from typing import Any

import pytest

from nearmesh.devmesh.load import Call
from tests.faults.live_report import Fault, left_after_s

FROZEN = Fault(kind="freeze", target="node-a", began_s=100.0, healed_s=105.0, recovered_s=106.0)


def call(at_s: float, **more: Any) -> Call:
    return Call(**{"started_s": at_s, "ms": 10.0, "node": "node-b", "attempt": 1, **more})


@pytest.mark.parametrize(
    "wrong",
    [
        call(101.5, node="node-a"),
        call(101.5, node="", error="DEADLINE_EXCEEDED", attempt=0),
        call(101.5, attempt=2),
        call(101.5, why="cheapest in time; after node-a: silent"),
    ],
)
def test_a_node_is_left_when_the_last_call_began_that_went_there(wrong: Call) -> None:
    assert left_after_s([call(100.1), wrong, call(102.0)], FROZEN) == 1.5


def test_who_waits_for_a_first_connection_elsewhere_has_left_it() -> None:
    assert left_after_s([call(101.9, ms=1200.0)], FROZEN) == 0.0


def test_only_what_began_while_it_was_frozen_counts() -> None:
    assert left_after_s([call(99.9, attempt=2), call(105.1, node="node-a")], FROZEN) == 0.0
