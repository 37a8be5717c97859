"""Quantiles by nearest rank, over samples that are few and young."""

from __future__ import annotations

import math

import pytest

from nearmesh.quantiles import Window, quantile


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


def test_an_empty_window_knows_nothing() -> None:
    window = Window()
    assert window.quantiles(0.5, now_s=0) is None
    assert len(window) == 0


def test_the_oldest_sample_leaves_a_full_window() -> None:
    window = Window(size=3)
    for value in (100, 1, 2, 3):
        window.add(value, now_s=0)
    assert (len(window), window.quantiles(1.0, 0.0, now_s=0)) == (3, (3, 1))


def test_samples_age() -> None:
    window = Window(max_age_s=10)
    window.add(1, now_s=0)
    window.add(2, now_s=5)
    assert window.quantiles(0.0, now_s=10) == (1,)
    assert window.quantiles(0.0, now_s=10.1) == (2,)
    assert window.quantiles(0.0, now_s=15) == (2,)
    assert window.quantiles(0.0, now_s=15.1) is None
    # It may fill again.
    window.add(3, now_s=20)
    assert window.quantiles(0.5, now_s=20) == (3,)


def test_without_a_limit_nothing_ages() -> None:
    window = Window()
    window.add(1, now_s=-math.inf)
    assert window.quantiles(0.5, now_s=1e12) == (1,)
