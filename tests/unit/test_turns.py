"""Several control planes, asked in turn."""

from __future__ import annotations

from nearmesh.addresses import several
from nearmesh.turns import Turns


def test_a_list_with_commas() -> None:
    assert several("a:1") == ("a:1",)
    assert several(" a:1, [::1]:2,a:1,, ") == ("a:1", "[::1]:2")
    assert several("") == ()


def test_one_is_asked_again_and_again() -> None:
    turns = Turns(["a:1"])
    assert [turns.failed("a:1"), turns.failed("a:1")] == [True, True]
    assert (turns.current, len(turns)) == ("a:1", 1)


def test_all_are_asked_before_one_waits() -> None:
    turns = Turns(["a:1", "b:1", "c:1"])
    said = []
    for _ in range(4):
        said.append((turns.current, turns.failed(turns.current)))
    assert said == [("a:1", False), ("b:1", False), ("c:1", True), ("a:1", True)]


def test_who_answered_is_asked_until_it_fails() -> None:
    turns = Turns(["a:1", "b:1"])
    turns.failed("a:1")
    turns.answered()
    assert turns.order == ("b:1", "a:1")
    assert turns.failed("b:1") is False
    assert turns.current == "a:1"


def test_several_who_turn_away_from_one_turn_once() -> None:
    turns = Turns(["a:1", "b:1", "c:1"])
    for _ in range(3):
        turns.failed("a:1")
    assert turns.current == "b:1"


def test_learning_keeps_the_present_one_if_it_is_still_there() -> None:
    turns = Turns(["a:1", "b:1"])
    turns.failed("a:1")
    assert not turns.learn([])
    assert not turns.learn(["b:1", "a:1"])
    assert turns.current == "b:1"
    assert turns.learn(["c:1", "b:1"])
    assert turns.order == ("b:1", "c:1")
    assert turns.learn(["d:1"])
    assert turns.order == ("d:1",)
