"""What becomes of a row of which sites hear in any order: they agree, and deletes win."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearmesh_agent.vectors.across.clock import MAX_AHEAD_S, HybridClock, seconds
from nearmesh_agent.vectors.across.states import State, content, merged
from nearmesh_agent.vectors.model import Clock, Row

from nearmesh.errors import InvalidInput

VECTOR = np.zeros(2, np.float32)


def row(written: int, after: int = 0, text: str = "") -> Row:
    clock = Clock(written=written, written_after=after, deleted=after)
    return Row(id="x", vector=VECTOR, text=text, clock=clock)


def written(written: int, after: int = 0, text: str = "") -> State:
    return State(row=row(written, after, text), deleted=after)


def deleted(at: int) -> State:
    return State(deleted=at)


def text(state: State) -> str | None:
    return state.row.text if state.row else None


@pytest.mark.parametrize(
    ("here", "there", "found"),
    [
        (State(), written(1, text="a"), "a"),
        (written(1, text="a"), written(2, text="b"), "b"),
        (written(2, text="b"), written(1, text="a"), "b"),
        (written(1, text="a"), deleted(5), None),
        # It is later, and did not know of the delete.
        (deleted(5), written(9, text="a"), None),
        (deleted(5), written(9, after=5, text="a"), "a"),
        # It knew of a delete that the other one did not know of, which wrote later.
        (written(20, text="late"), written(9, after=5, text="knew"), "knew"),
        (written(9, after=5, text="a"), deleted(7), None),
    ],
)
def test_the_newest_write_that_knew_of_the_newest_delete_is_there(here: State, there: State, found: str | None) -> None:
    assert text(merged(here, there)) == found
    assert text(merged(there, here)) == found


def test_what_is_no_news_changes_nothing() -> None:
    for here, there in (
        (written(2), written(1)),
        (written(2), written(2)),
        (deleted(5), written(4)),
        (State(), State()),
    ):
        assert merged(here, there) is here


@st.composite
def histories(draw: st.DrawFn) -> list[State]:
    """What three sites that hear of each other now and then make of one id."""
    clocks = [HybridClock(f"site-{n}", wall_s=lambda: 1000.0) for n in range(3)]
    sites = [State() for _ in clocks]
    told = []
    for step in range(draw(st.integers(1, 12))):
        at = draw(st.integers(0, 2))
        here, clock = sites[at], clocks[at]
        match draw(st.sampled_from(("write", "delete", "hear"))):
            case "write":
                stamp = clock.now()
                sites[at] = State(row=row(stamp, here.deleted, f"{at}-{step}"), deleted=here.deleted)
            case "delete":
                sites[at] = State(deleted=clock.now())
            case "hear" if told:
                heard = draw(st.sampled_from(told))
                clock.heard(max(heard.deleted, heard.row.clock.written if heard.row else 0))
                sites[at] = merged(here, heard)
        told.append(sites[at])
    return told


@given(histories(), st.randoms(use_true_random=False))
def test_sites_that_heard_of_everything_agree_whatever_the_order_and_however_often(told: list[State], random) -> None:  # type: ignore[no-untyped-def]
    found = set()
    for _ in range(4):
        state = State()
        for one in random.sample(told, len(told)) + random.choices(told, k=3):
            state = merged(state, one)
        found.add((text(state), state.deleted, state.row.clock if state.row else None))
    assert len(found) == 1
    (_, newest, _) = found.pop()
    assert newest == max(state.deleted for state in told)
    assert all(merged(state, one) is state for one in told)


def test_two_writes_of_one_stamp_part_no_sites() -> None:
    one, other = written(3, text="a"), written(3, text="b")
    assert text(merged(one, other)) == text(merged(other, one))


def test_the_same_write_with_the_vector_of_another_version_is_no_news() -> None:
    here, there = written(3, text="a"), written(3, text="a")
    assert there.row
    for vector in (np.array([9, 9], np.float32), np.array([-9, -9], np.float32)):
        other = State(row=replace(there.row, vector=vector))
        assert merged(here, other) is here and merged(other, here) is other


def test_a_digest_tells_contents_apart_and_not_clocks() -> None:
    same = {content(row(1, text="a")), content(row(2, text="a"))}
    assert len(same) == 1
    others = [Row(id="x", vector=VECTOR, fields={"f": value}) for value in (1, 1.0, True, "1")]
    assert len({content(one) for one in others}) == len(others)


def test_stamps_grow_also_when_the_clock_stands_or_goes_back_and_differ_between_nodes() -> None:
    now_s = [1000.0]
    clock, other = (HybridClock(name, wall_s=lambda: now_s[0]) for name in ("a", "b"))
    first, second = clock.now(), clock.now()
    now_s[0] -= 500
    third = clock.now()
    assert first < second < third
    assert HybridClock("a", last=third, wall_s=lambda: now_s[0]).now() > third
    assert other.now() not in (first, second, third)
    other.heard(third)
    assert other.now() > third
    assert seconds(first) == 1000.0


def test_a_stamp_that_no_right_clock_gives_is_refused() -> None:
    here = HybridClock("a", wall_s=lambda: 1000.0)
    here.check(HybridClock("b", wall_s=lambda: 1000.0 + MAX_AHEAD_S - 1).now())
    with pytest.raises(InvalidInput, match="ahead of this node's clock"):
        here.check(HybridClock("b", wall_s=lambda: 1002.0 + MAX_AHEAD_S).now())
