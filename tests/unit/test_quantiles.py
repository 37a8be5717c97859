"""Quantiles by nearest rank, over samples that are few and young."""

from __future__ import annotations

import math

import pytest

from nearmesh.quantiles import CONFIDENCE, LEAST_SAMPLES, Window, proven_tail, quantile


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([7], 0.0, 7),
        ([7], 0.5, 7),
        ([7], 1.0, 7),
        ([1, 2], 0.5, 1),
        ([1, 2], 0.51, 2),
        ([1, 2, 3], 0.5, 2),
        (range(1, 101), 0.95, 95),
        (range(1, 101), 0.99, 99),
        (range(1, 101), 1.0, 100),
        (range(1, 101), 0.0, 1),
        # One slow sample in twenty is not the 95th percentile; two are.
        ([1] * 19 + [100], 0.95, 1),
        ([1] * 18 + [100] * 2, 0.95, 100),
    ],
)
def test_nearest_rank(values: list[int], q: float, expected: float) -> None:
    assert quantile(list(values), q) == expected


# The last count of samples at which so many strays are overlooked, at the 95th percentile.
STRAYS = [(1, 0), (2, 1), (7, 1), (8, 2), (16, 2), (17, 3), (28, 3), (29, 4), (64, 6), (256, 19)]


@pytest.mark.parametrize(("count", "strays"), STRAYS)
def test_a_tail_is_no_longer_than_the_samples_prove(count: int, strays: int) -> None:
    ordered = list(range(count))
    assert proven_tail(ordered, 0.95) == max(0, count - 1 - strays)


@pytest.mark.parametrize("count", [3, 5, 8, 20, 64, 256])
@pytest.mark.parametrize("q", [0.75, 0.9, 0.95, 0.99])
def test_the_true_quantile_is_below_the_proven_one_as_seldom_as_it_says(count: int, q: float) -> None:
    """By the binomial itself, summed from the other end: at least `strays + 1` of `count` are above the quantile."""
    overlooked = count - 1 - proven_tail(list(range(count)), q)

    def at_least(above: int) -> float:
        return sum(math.comb(count, k) * (1 - q) ** k * q ** (count - k) for k in range(above, count + 1))

    assert at_least(overlooked + 1) <= 1 - CONFIDENCE + 1e-12
    # One less would not be enough.
    assert overlooked == 0 or at_least(overlooked) > 1 - CONFIDENCE


def test_many_samples_show_their_tail() -> None:
    assert proven_tail([1] * 900 + [100] * 100, 0.95) == 100
    assert proven_tail([1] * 960 + [100] * 40, 0.95) == 1


def test_an_empty_window_knows_nothing_and_one_with_few_samples_says_nothing() -> None:
    window = Window()
    assert len(window) == 0
    for count in range(LEAST_SAMPLES):
        assert (len(window), window.quantiles(0.5, now_s=0)) == (count, None)
        window.add(1, now_s=0)
    assert window.quantiles(0.5, 0.95, now_s=0) == (1, 1)


def test_one_pause_in_a_young_window_is_no_tail() -> None:
    window = Window()
    for value in (5, 900, 6):
        window.add(value, now_s=0)
    assert window.quantiles(0.5, 0.95, now_s=0) == (6, 6)
    window.add(900, now_s=0)
    assert window.quantiles(0.5, 0.95, now_s=0) == (6, 900)


def test_the_oldest_sample_leaves_a_full_window() -> None:
    window = Window(size=3)
    for value in (100, 1, 2, 3):
        window.add(value, now_s=0)
    assert (len(window), window.quantiles(1.0, 0.0, now_s=0)) == (3, (3, 1))


def test_samples_age() -> None:
    window = Window(max_age_s=10)
    for value, now_s in ((1, 0), (2, 5), (3, 5), (4, 5)):
        window.add(value, now_s=now_s)
    assert window.quantiles(0.0, now_s=10) == (1,)
    assert window.quantiles(0.0, now_s=10.1) == (2,)
    assert window.quantiles(0.0, now_s=15) == (2,)
    assert window.quantiles(0.0, now_s=15.1) is None
    # It may fill again.
    for _ in range(LEAST_SAMPLES):
        window.add(5, now_s=20)
    assert window.quantiles(0.5, now_s=20) == (5,)


def test_without_a_limit_nothing_ages() -> None:
    window = Window()
    for _ in range(LEAST_SAMPLES):
        window.add(1, now_s=-math.inf)
    assert window.quantiles(0.5, now_s=1e12) == (1,)
