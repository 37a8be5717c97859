"""Quantiles by nearest rank, and how far a tail is proven."""

from __future__ import annotations

import math

import pytest

from nearmesh.quantiles import CONFIDENCE, MANY_SAMPLES, proven_level, quantile


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
    assert proven_level(0.95, count) == pytest.approx(max(0.5, 1 - strays / count))


@pytest.mark.parametrize("count", [8, 20, 64, 256])
@pytest.mark.parametrize("q", [0.75, 0.9, 0.95, 0.99])
def test_the_true_quantile_is_below_the_proven_one_as_seldom_as_it_says(count: int, q: float) -> None:
    """By the binomial itself, summed from the other end: at least `strays + 1` of `count` are above the quantile."""
    overlooked = round((1 - proven_level(q, count)) * count)

    def at_least(above: int) -> float:
        return sum(math.comb(count, k) * (1 - q) ** k * q ** (count - k) for k in range(above, count + 1))

    assert at_least(overlooked + 1) <= 1 - CONFIDENCE + 1e-12
    # One less would not be enough.
    assert overlooked == 0 or at_least(overlooked) > 1 - CONFIDENCE


@pytest.mark.parametrize("q", [0.75, 0.9, 0.95, 0.99])
def test_many_samples_show_their_tail_and_the_formula_goes_on_where_the_binomial_ends(q: float) -> None:
    assert proven_level(q, MANY_SAMPLES) == pytest.approx(proven_level(q, MANY_SAMPLES + 1), abs=0.005)
    levels = [proven_level(q, count) for count in (MANY_SAMPLES + 1, 2_000, 10_000, 10**6)]
    assert levels == sorted(levels) and levels[-1] == pytest.approx(q, abs=0.001)


@pytest.mark.parametrize("q", [0.0, 0.05, 0.5])
def test_up_to_the_median_nothing_has_to_be_proven(q: float) -> None:
    assert [proven_level(q, count) for count in (0, 1, 3, 1000)] == [q] * 4
