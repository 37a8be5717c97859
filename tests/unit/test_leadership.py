"""Who leads: a lease, told by a database that tests play, on clocks that they turn."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from nearmesh_controlplane.peers.leadership import (
    AGAIN_S,
    LEASE_S,
    LOOK_EVERY_S,
    MARGIN_S,
    RENEW_EVERY_S,
    Holder,
    Leadership,
)

from nearmesh.errors import InvalidInput

ACTS_S = LEASE_S - MARGIN_S


def held_by(incarnation: str, term: int = 1, left_s: float = LEASE_S) -> Holder:
    return Holder(id=f"plane-{incarnation}", incarnation=incarnation, term=term, left_s=left_s)


def leading(*, asked_at_s: float = 100.0, now_s: float = 100.0, term: int = 1) -> Leadership:
    one = Leadership("me")
    one.told(held_by("me", term), asked_at_s=asked_at_s, now_s=now_s)
    return one


def test_nobody_leads_before_the_database_said_so() -> None:
    one = Leadership("me")
    assert (one.term(0.0), one.holder, one.next_claim_in_s(0.0)) == (0, None, 0.0)
    one.told(held_by("other"), asked_at_s=0.0, now_s=0.0)
    assert one.term(0.0) == 0


@pytest.mark.parametrize(
    ("now_s", "term"),
    [(100.0, 7), (100.0 + ACTS_S - 0.001, 7), (100.0 + ACTS_S, 0), (100.0 + LEASE_S, 0), (1e9, 0)],
)
def test_a_leader_acts_until_a_margin_before_its_lease_ends(now_s: float, term: int) -> None:
    assert leading(term=7).term(now_s) == term


def test_time_counts_from_before_the_claim_was_sent() -> None:
    late = leading(asked_at_s=100.0, now_s=100.0 + ACTS_S + 1)
    assert late.term(100.0 + ACTS_S + 1) == 0, "an answer that was long under way gives no time"


def test_a_renewal_goes_on_in_the_same_term() -> None:
    one = leading()
    assert one.next_claim_in_s(100.0) == RENEW_EVERY_S
    one.told(held_by("me"), asked_at_s=101.0, now_s=101.2)
    assert one.term(101.0 + ACTS_S - 0.001) == 1
    assert one.term(101.0 + ACTS_S) == 0


def test_what_was_held_is_held_until_its_time_is_over_though_the_database_is_silent() -> None:
    one = leading()
    for now_s in (101.0, 102.0):
        one.unanswered(now_s)
        assert one.term(now_s) == 1
        assert one.next_claim_in_s(now_s) == pytest.approx(AGAIN_S)
    assert one.term(100.0 + ACTS_S) == 0


def test_a_leader_that_froze_knows_when_it_wakes_that_its_time_is_over() -> None:
    one = leading()
    # Nothing was called in between: it was stopped, or its machine slept.
    assert one.term(100.0 + 3600.0) == 0


def test_a_lost_leadership_ends_at_once() -> None:
    one = leading()
    one.told(held_by("other", term=2), asked_at_s=101.0, now_s=101.0)
    assert one.term(101.0) == 0
    assert one.holder == held_by("other", term=2)


def test_who_leads_again_does_so_in_a_new_term() -> None:
    one = leading()
    one.told(held_by("other", term=2, left_s=-1.0), asked_at_s=110.0, now_s=110.0)
    one.told(held_by("me", term=3), asked_at_s=110.1, now_s=110.1)
    assert one.term(110.1) == 3


def test_the_same_id_after_a_restart_is_another_one() -> None:
    """Its process before may have been stopped for a moment only: two of one id must not act together."""
    one = Leadership("second")
    one.told(Holder(id="a", incarnation="first", term=4, left_s=2.0), asked_at_s=0.0, now_s=0.0)
    assert one.term(0.0) == 0


@pytest.mark.parametrize(
    ("left_s", "wait_s"), [(3.0, LOOK_EVERY_S), (0.5, 0.5 + AGAIN_S), (0.0, AGAIN_S), (-5.0, AGAIN_S)]
)
def test_a_lease_of_others_is_asked_for_when_it_ends_and_looked_at_before(left_s: float, wait_s: float) -> None:
    one = Leadership("me")
    one.told(held_by("other", left_s=left_s), asked_at_s=50.0, now_s=50.5)
    assert one.next_claim_in_s(50.5) == pytest.approx(wait_s)


def test_who_ends_acts_no_more() -> None:
    one = leading()
    one.given_up()
    assert one.term(100.0) == 0


@pytest.mark.parametrize("margin_s", [-0.1, 3.0, 4.0])
def test_a_margin_that_leaves_nothing_is_refused(margin_s: float) -> None:
    with pytest.raises(InvalidInput, match="margin"):
        Leadership("me", 3.0, margin_s)


# Two of them and a database, whatever is delayed between the three


@dataclass
class Table:
    """The row in the database, and its clock, which runs a little faster or slower than the others'."""

    holder: str = ""
    term: int = 0
    expires_s: float = 0.0
    speed: float = 1.0
    now_s: float = 0.0

    def claim(self, who: str) -> Holder:
        if self.holder == who or self.expires_s <= self.now_s:
            self.term += self.holder != who
            self.holder, self.expires_s = who, self.now_s + LEASE_S
        return Holder(id=self.holder, incarnation=self.holder, term=self.term, left_s=self.expires_s - self.now_s)


@dataclass
class Candidate:
    """One control plane, its clock, and a claim on its way to the table and back."""

    name: str
    leadership: Leadership
    now_s: float
    asked_at_s: float = 0.0
    reaches_in: int = -1
    returns_in: int = -1
    answer: Holder | None = None
    frozen: int = 0


@pytest.mark.parametrize("seed", range(30))
def test_never_two_act_at_a_time_and_a_lost_leader_is_replaced(seed: int) -> None:
    """In steps of 50 ms: claims take up to a second each way, processes freeze, clocks differ and drift by 0.1 %."""
    chance = random.Random(seed)
    step_s = 0.05
    table = Table(speed=chance.uniform(0.999, 1.001))
    speeds = {name: chance.uniform(0.999, 1.001) for name in "abc"}
    candidates = [Candidate(name, Leadership(name), chance.uniform(0, 1e6)) for name in "abc"]
    acted: list[int] = []
    for _ in range(3000):
        table.now_s += step_s * table.speed
        for one in candidates:
            one.now_s += step_s * speeds[one.name]
            if one.reaches_in == 0:
                one.answer, one.returns_in = table.claim(one.name), chance.choice((0, 1, 3, 20))
            one.reaches_in -= 1
            if one.frozen:
                one.frozen -= 1
                continue
            if one.answer is not None:
                if one.returns_in <= 0:
                    one.leadership.told(one.answer, asked_at_s=one.asked_at_s, now_s=one.now_s)
                    one.answer = None
                one.returns_in -= 1
            elif one.reaches_in < 0 and one.leadership.next_claim_in_s(one.now_s) == 0.0:
                one.asked_at_s, one.reaches_in = one.now_s, chance.choice((0, 0, 1, 3, 20))
            if chance.random() < 0.01:
                one.frozen = chance.choice((10, 60, 200))
        acting = [one for one in candidates if not one.frozen and one.leadership.term(one.now_s)]
        assert len(acting) <= 1, [one.name for one in acting]
        acted += [one.leadership.term(one.now_s) for one in acting]
    assert acted == sorted(acted), "a term came back"
    assert len(acted) > 500, "they hardly ever led: the test proves nothing"
    assert len(set(acted)) > 3, "nobody was ever replaced: the test proves nothing"
