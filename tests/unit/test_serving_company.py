"""When a call on the event loop waits for more requests to share it."""

from __future__ import annotations

from nearmesh_agent.serving.company import PATIENCE, PATIENCE_S, Company


def turns(company, waiting, *, enough=False, now_s=0.0):
    """Turns of the loop until the call begins."""
    for turn in range(1000):
        if not company.expected(waiting, enough=enough, now_s=now_s):
            return turn
    raise AssertionError("it never began")


def test_it_waits_until_some_turns_brought_nobody():
    company = Company()
    assert turns(company, 2) == PATIENCE
    company.expected(2, enough=False, now_s=0.0)
    assert turns(company, 3) == PATIENCE


def test_enough_is_enough():
    assert turns(Company(), 32, enough=True) == 0


def test_no_longer_than_a_moment_however_long_the_turns_take():
    company = Company()
    assert company.expected(2, enough=False, now_s=1.0)
    assert not company.expected(3, enough=False, now_s=1.0 + PATIENCE_S)


def test_who_is_alone_soon_waits_no_more_and_is_tried_again_now_and_then():
    company = Company()
    waited = [turns(company, 1) for _ in range(67)]
    assert waited[:4] == [PATIENCE, PATIENCE, PATIENCE, 0]
    assert waited[4:64] == [0] * 60 and waited[64] == PATIENCE
    turns(company, 2)
    assert turns(company, 1) == PATIENCE
