"""Which requests are a trial's turn, exactly, and how long it may take."""

from __future__ import annotations

import math

import pytest
from nearmesh_agent.serving.trial import Share, patience_s, together_s


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 1 / 3, 0.5, 0.999, 1.0])
def test_a_share_is_exact_however_many_requests_there_are(share):
    given = Share(share)
    taken = 0
    for count in range(1, 5001):
        taken += given.next()
        assert taken <= share * count + 1e-2 and taken > share * count - 1 - 1e-2


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, math.nan, math.inf])
def test_what_is_no_share_gets_nothing(share):
    given = Share(share)
    assert not any(given.next() for _ in range(100))


def test_what_could_not_be_taken_is_taken_later_and_not_in_a_row():
    given = Share(0.5)
    assert [given.due() for _ in range(10)] == [False] + 9 * [True]
    taken = [given.next() for _ in range(10)]
    assert sum(taken) == 6 and (True, True, True) not in zip(taken, taken[1:], taken[2:], strict=False)


def test_a_share_may_change_in_the_middle():
    given = Share(0.25)
    assert sum(given.next() for _ in range(6)) == 1
    given.change(0.5)
    # Half of the next turn was due.
    assert [given.next() for _ in range(4)] == [True, False, True, False]
    given.change(0.0)
    assert not any(given.next() for _ in range(100))


@pytest.mark.parametrize(
    ("left_s", "p95_s", "patience"),
    [
        # Plenty of time: nobody waits longer than is usual for the standing version, five times over, and a second.
        (None, 0.1, 1.5),
        (30.0, 0.1, 1.5),
        (30.0, 0.0, 1.0),
        # Less: twice what the standing one needs, 20 ms and a tenth stay for it.
        (0.6, 0.1, 0.6 - 0.2 - 0.02 - 0.06),
        (0.05, 0.002, 0.05 - 0.004 - 0.02 - 0.005),
        # No time for both: the standing version gets all of it.
        (0.4, 0.1, 0.0),
        (0.0, 0.1, 0.0),
        (-1.0, 0.1, 0.0),
        (0.02, 0.0, 0.0),
    ],
)
def test_a_trial_may_take_what_the_standing_version_can_spare(left_s, p95_s, patience):
    assert patience_s(left_s, p95_s) == pytest.approx(patience)


@pytest.mark.parametrize(
    ("left_s", "p95_s", "together"),
    [(None, 0.1, 1.5), (30.0, 0.1, 1.5), (0.2, 0.1, 0.16), (0.02, 0.1, 0.0), (-1.0, 0.1, 0.0)],
)
def test_where_the_standing_version_works_as_well_a_trial_may_take_nearly_all(left_s, p95_s, together):
    assert together_s(left_s, p95_s) == pytest.approx(together)
