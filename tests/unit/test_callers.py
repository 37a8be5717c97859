"""Nodes that say less than they take, and what else may look like one."""

from __future__ import annotations

import pytest
from nearmesh_controlplane.routing import callers as module
from nearmesh_controlplane.routing.callers import (
    HALF_LIFE_S,
    LEAST_CALLS,
    LEAST_REPORTS,
    LOOK_AGAIN_S,
    SLACK_MS,
    CallersWord,
)

from nearmesh.routing import Times

CLAIM = Times.certain(10.0)
PAIR = ("m", "liar")


class Word:
    """What gateways tell each second."""

    def __init__(self) -> None:
        self.book, self.now_s = CallersWord(), 1000.0

    def tell(self, own_ms: float, *, node: str = "liar", seconds: int = 60, gateways: str = "g", **more: int) -> None:
        for _ in range(seconds):
            self.now_s += 1.0
            for gateway in gateways:
                given = {"calls": 5, **more}
                self.book.report(("m", node), gateway, own_ms=own_ms, claim=CLAIM, now_s=self.now_s, **given)

    def extra_ms(self, claim: Times = CLAIM) -> float:
        self.now_s += LOOK_AGAIN_S
        return self.book.extra_ms(PAIR, claim, now_s=self.now_s)


def test_a_node_that_takes_far_longer_than_it_says_is_taken_for_as_slow_as_it_is() -> None:
    word = Word()
    word.tell(500.0)
    assert word.extra_ms() == pytest.approx(490.0, rel=0.02)


@pytest.mark.parametrize("own_ms", [0.0, 10.0, 10.0 + SLACK_MS, 1.9 * (10.0 + SLACK_MS), -5.0])
def test_what_is_near_enough_is_no_lie(own_ms: float) -> None:
    word = Word()
    word.tell(own_ms)
    assert word.extra_ms() == 0.0


def test_few_reports_and_few_calls_prove_nothing() -> None:
    word = Word()
    word.tell(500.0, seconds=int(LEAST_REPORTS) - 1)
    assert word.extra_ms() == 0.0
    word.tell(500.0, calls=LEAST_CALLS - 1)
    assert word.extra_ms() == 0.0
    assert CallersWord().extra_ms(PAIR, CLAIM, now_s=0.0) == 0.0


def test_calls_that_waited_for_another_node_first_are_not_held_against_the_next_one() -> None:
    word = Word()
    word.tell(2000.0, seconds=4)
    word.tell(12.0, seconds=30)
    word.tell(2000.0, seconds=4)
    assert word.extra_ms() == 0.0


def test_one_odd_gateway_of_three_is_outvoted() -> None:
    word = Word()
    for _ in range(40):
        word.tell(500.0, seconds=1, gateways="x")
        word.tell(10.0, seconds=1, gateways="ab")
    assert word.extra_ms() == 0.0


def test_when_all_nodes_of_a_model_are_as_far_off_it_is_not_the_node() -> None:
    word = Word()
    for _ in range(40):
        word.tell(500.0, seconds=1)
        word.tell(480.0, node="other", seconds=1)
    assert word.extra_ms() == 0.0
    honest = Word()
    for _ in range(40):
        honest.tell(500.0, seconds=1)
        honest.tell(11.0, node="other", seconds=1)
    assert honest.extra_ms() > 400.0


def test_a_node_that_was_slow_and_said_so_is_not_held_to_it() -> None:
    book, now_s = CallersWord(), 0.0
    for _ in range(60):
        now_s += 1.0
        book.report(PAIR, "g", own_ms=500.0, calls=5, claim=Times.certain(490.0), now_s=now_s)
    assert book.extra_ms(PAIR, CLAIM, now_s=now_s) == 0.0


def test_it_fades_and_is_forgotten() -> None:
    word = Word()
    word.tell(500.0)
    word.now_s += 3 * HALF_LIFE_S
    assert word.extra_ms() == 0.0
    word.tell(500.0)
    word.book.forget(["m"], ["other"], now_s=word.now_s)
    assert word.extra_ms() == 0.0
    word.tell(500.0)
    word.book.forget(["m"], ["liar"], now_s=word.now_s)
    assert word.extra_ms() > 0.0


def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VOICES", 2)
    word = Word()
    word.tell(10.0, gateways="ab", node="other")
    word.tell(500.0, gateways="c")
    assert word.extra_ms() == 0.0
