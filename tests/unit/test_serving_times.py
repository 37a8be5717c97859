"""What is learned about engine calls: how long they take, and which size pays."""

from __future__ import annotations

import pytest
from nearmesh_agent.serving.times import ServiceTimes


def learned(max_rows=8, preferred=(), **seconds_of):
    """`r4=0.1`: a call of four rows takes 100 ms."""
    times = ServiceTimes(max_rows, preferred)
    for name, seconds in seconds_of.items():
        times.add(int(name[1:]), seconds)
    return times


@pytest.mark.parametrize(
    ("max_rows", "preferred", "sizes"),
    [
        (0, (), (1,)),
        (1, (), (1,)),
        (6, (), (1, 2, 4, 6)),
        (8, (), (1, 2, 4, 8)),
        (16, (4, 12), (1, 4, 12)),
    ],
)
def test_sizes_that_are_told_apart(max_rows, preferred, sizes):
    assert ServiceTimes(max_rows, preferred).sizes == sizes


def test_nothing_is_assumed():
    times = ServiceTimes(8)
    assert (times.best, times.mean_s(1), times.mean_s(8), times.deviation_s(1)) == (1, 0.0, 0.0, 0.0)


def test_the_size_with_the_most_rows_per_second_is_used():
    assert learned(r1=0.01, r2=0.012, r4=0.016, r8=0.064).best == 4
    # On a CPU, rows often cost more in company.
    assert learned(r1=0.01, r2=0.025, r4=0.06, r8=0.2).best == 1


def test_a_smaller_size_that_is_nearly_as_good_answers_sooner():
    assert learned(r1=0.01, r4=0.0405, r8=0.0799).best == 1
    assert learned(r1=0.01, r4=0.04, r8=0.07).best == 8


def test_calls_between_the_sizes_count_as_if_they_had_been_full():
    times = learned(r3=0.03)
    assert times.mean_s(4) == pytest.approx(0.04)
    # What was not measured is told from what was.
    assert times.mean_s(8) == pytest.approx(0.08)
    assert times.mean_s(1) == pytest.approx(0.04)


def test_a_call_beyond_the_preferred_sizes_counts_for_its_part():
    times = learned(16, (4, 8), r16=0.16)
    assert times.mean_s(8) == pytest.approx(0.08)
    assert times.mean_s(16) == pytest.approx(0.16)


def test_means_follow_what_is_measured():
    times = learned(r1=0.1)
    for _ in range(50):
        times.add(1, 0.01)
    assert times.mean_s(1) == pytest.approx(0.01, rel=0.05)
    assert times.deviation_s(1) < 0.001
    times.add(1, 0.09)
    assert times.mean_s(1) == pytest.approx(0.02, rel=0.05)
    assert times.deviation_s(1) == pytest.approx(0.02, rel=0.05)


def test_a_bad_moment_is_forgotten_when_a_call_proves_faster():
    times = learned(r1=10.0, r2=40.0)
    times.at_most(1, 0.01)
    assert times.mean_s(1) == pytest.approx(0.01)
    assert times.deviation_s(1) <= 0.0025
    times.at_most(1, 5.0)
    assert times.mean_s(1) == pytest.approx(0.01)
    # It says what is possible, not what is usual: nothing is learned about a size that was never measured.
    fresh = ServiceTimes(8)
    fresh.at_most(4, 0.01)
    assert fresh.mean_s(4) == 0.0


def test_neighbours_of_the_size_in_use_are_tried_now_and_then():
    times = learned(r1=0.01, r2=0.012, r4=0.016, r8=0.064)
    tried = [times.limit(100) for _ in range(960)]
    assert tried.count(4) == 940 and tried.count(8) == tried.count(2) == 10
    # At the ends there is one neighbour only.
    ends = learned(r1=0.01, r2=0.03)
    assert {ends.limit(100) for _ in range(960)} == {1, 2}


def test_a_larger_size_that_pays_is_found_while_serving():
    """Calls take 10 ms whatever their size: nothing but trying can tell."""
    times = learned(r1=0.01)
    assert times.best == 1
    for _ in range(1000):
        times.add(times.limit(100), 0.01)
    assert times.best == 8


@pytest.mark.parametrize(("waiting", "expected"), [(1, 8), (3, 8), (4, 4), (7, 4), (8, 8), (100, 8)])
def test_preferred_sizes_are_taken_as_soon_as_enough_rows_wait(waiting, expected):
    assert learned(16, (4, 8), r1=0.01, r4=0.02, r8=0.03).limit(waiting) == expected


def test_without_preferred_sizes_no_more_is_taken_than_waits():
    times = learned(r1=0.01, r8=0.02)
    assert [times.limit(waiting) for waiting in (0, 1, 5, 9)] == [1, 1, 5, 8]
