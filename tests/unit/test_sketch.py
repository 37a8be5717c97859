"""Quantiles that age: within their accuracy, within their size, and fading when nothing comes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest

from nearmesh.quantiles import LEAST_SAMPLES, quantile
from nearmesh.routing.times import LEVELS, Times
from nearmesh.sketch import ACCURACY, LEAST_VALUE, Sketch, faded

HALF_LIFE_S = 10.0
SHAPES: dict[str, Callable[[random.Random], float]] = {
    "log-normal": lambda r: r.lognormvariate(3, 0.5),
    "two humps": lambda r: r.gauss(5, 0.2) if r.random() < 0.7 else r.gauss(300, 20),
    "a heavy tail": lambda r: 10 * r.paretovariate(1.2),
    "all alike": lambda r: 42.0,
    "tiny and huge": lambda r: 10 ** r.uniform(-2, 5),
}


def sketch(*values: float, now_s: float = 0.0, half_life_s: float = HALF_LIFE_S, buckets: int = 1100) -> Sketch:
    made = Sketch(half_life_s=half_life_s, max_buckets=buckets)
    for value in values:
        made.add(abs(value), now_s=now_s)
    return made


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_every_quantile_is_within_the_accuracy_of_a_true_one(shape: str, seed: int) -> None:
    chance = random.Random(seed)
    values = sorted(SHAPES[shape](chance) for _ in range(2000))
    made = sketch(*values)
    for q in (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0):
        assert made.quantile(q) == pytest.approx(quantile(values, q), rel=ACCURACY * 1.01)


def test_an_empty_one_knows_nothing_and_one_with_few_samples_says_nothing() -> None:
    made = sketch()
    assert made.quantile(0.5) is None
    for count in range(LEAST_SAMPLES):
        assert made.times() is None and made.trust(0) == 0
        assert made.weight(0) == pytest.approx(count)
        made.add(7.0, now_s=0)
    assert made.trust(0) == 1
    times = made.times()
    assert times is not None and times.ms == pytest.approx((7.0,) * len(LEVELS), rel=ACCURACY)


@pytest.mark.parametrize(
    ("samples", "p95"),
    [([5, 900, 6], 6), ([5, 900, 6, 900], 900), ([5] * 15 + [900] * 2, 5), ([5] * 900 + [80] * 100, 80)],
)
def test_a_tail_is_no_longer_than_the_samples_prove(samples: list[float], p95: float) -> None:
    times = sketch(*samples).times()
    assert times is not None and times.p95_ms == pytest.approx(p95, rel=ACCURACY)


def test_quantiles_rise_whatever_few_samples_prove() -> None:
    for count in (3, 4, 7, 20, 64, 500, 501, 3000):
        times = sketch(*range(1, count + 1)).times()
        assert times is not None and Times.of(times.ms) == times


def test_nothing_is_smaller_than_the_smallest_value() -> None:
    made = sketch(0.0, 0.0, 1e-9)
    assert made.quantile(0.5) == pytest.approx(LEAST_VALUE, rel=ACCURACY)


def test_a_sample_weighs_half_after_a_half_life() -> None:
    """Three old samples against two new ones: young, the old outweigh; a half-life later the new ones do."""
    for later_s, median in ((0.0, 10.0), (HALF_LIFE_S, 50.0)):
        made = sketch(10.0, 10.0, 10.0)
        made.add(50.0, now_s=later_s)
        made.add(50.0, now_s=later_s)
        assert made.quantile(0.5) == pytest.approx(median, rel=ACCURACY)
        assert made.weight(later_s) == pytest.approx(2 + 3 * 0.5 ** (later_s / HALF_LIFE_S))


def test_what_was_true_long_ago_is_forgotten_however_much_there_was_of_it() -> None:
    made = sketch(*[10.0] * 10_000)
    for second in range(1, 200):
        made.add(50.0, now_s=float(second))
    assert made.quantile(0.01) == pytest.approx(50.0, rel=ACCURACY)
    # Weights of any age stay ordinary numbers.
    for year in range(1, 50):
        made.add(60.0, now_s=year * 3e7)
        assert made.weight(year * 3e7) == pytest.approx(1.0)
    assert made.quantile(0.0) == pytest.approx(60.0, rel=ACCURACY)
    assert len(made._buckets) == 1


def test_trust_fades_by_half_lives_of_silence_and_ends() -> None:
    made = sketch(*[10.0] * 100)
    seen = [made.trust(silence * HALF_LIFE_S) for silence in range(12)]
    assert seen[:4] == [1.0, 1.0, 0.5, 0.25]
    assert all(a > b for a, b in itertools.pairwise(seen[1:]))
    assert seen[-1] < 0.01
    # Quantiles stay what they were meanwhile: what fades is their share.
    assert made.quantile(0.5) == pytest.approx(10.0, rel=ACCURACY)


def test_one_fresh_sample_makes_no_old_ones_fresh() -> None:
    made = sketch(*[10.0] * 100)
    made.add(500.0, now_s=12 * HALF_LIFE_S)
    assert made.trust(12 * HALF_LIFE_S) == 0
    for _ in range(2):
        made.add(12.0, now_s=12 * HALF_LIFE_S)
    times = made.times()
    assert made.trust(12 * HALF_LIFE_S) == 1 and times is not None
    assert times.p50_ms == pytest.approx(12.0, rel=ACCURACY)


def test_merged_sketches_are_as_one_that_saw_everything() -> None:
    chance = random.Random(5)
    one, other, both = sketch(), sketch(), sketch()
    for at in range(500):
        value, now_s = chance.lognormvariate(3, 0.4), at / 20
        (one if at % 3 else other).add(value, now_s=now_s)
        both.add(value, now_s=now_s)
    one.merge(other, now_s=25.0)
    for q in LEVELS:
        assert one.quantile(q) == both.quantile(q)
    assert one.weight(25.0) == pytest.approx(both.weight(25.0))
    assert one.samples == pytest.approx(both.samples)
    one.merge(sketch(), now_s=26.0)
    assert one.weight(25.0) == pytest.approx(both.weight(25.0))


@pytest.mark.parametrize(("finer", "coarser"), [(1100, 16), (16, 1100), (16, 8)])
def test_merging_keeps_the_coarser_buckets(finer: int, coarser: int) -> None:
    values = [1.05**i for i in range(1, 120)]
    one, other = sketch(*values, buckets=finer), sketch(*values, buckets=coarser)
    one.merge(other, now_s=0.0)
    assert len(one._buckets) <= finer
    assert one.weight(0.0) == pytest.approx(2 * len(values))
    middle = one.quantile(0.5)
    assert middle is not None and middle == pytest.approx(quantile(values, 0.5), rel=0.35)


@pytest.mark.parametrize("buckets", [8, 32, 64])
def test_its_size_is_bounded_and_its_error_grows_by_as_much_as_it_must(buckets: int) -> None:
    """UDDSketch: joined until the whole range fits, and no more than that."""
    chance = random.Random(3)
    values = sorted(10 ** chance.uniform(-2, 4.7) for _ in range(3000))
    made = sketch(*values, buckets=buckets)
    assert len(made._buckets) <= buckets
    # A bucket's width on the logarithmic scale is at most twice the range's share.
    width = 2 * math.log(values[-1] / values[0]) / (buckets - 1)
    for q in (0.05, 0.5, 0.95):
        found = made.quantile(q)
        assert found is not None and abs(math.log(found / quantile(values, q))) <= width


def test_faded_is_between_the_two_and_knows_both_ends() -> None:
    measured, otherwise = Times.certain(50.0), Times.spread(100.0, 210.0)
    assert faded(measured, otherwise, 1.0) is measured
    assert faded(measured, otherwise, 0.0).ms == pytest.approx(otherwise.ms)
    for trust in (0.25, 0.5, 0.75):
        between = faded(measured, otherwise, trust)
        assert Times.of(between.ms) == between
        # Never to full and never to empty: the median moves towards the other, and the spread comes back with it.
        assert 50 < between.p50_ms < 100
        assert 1 < between.p95_ms / between.p50_ms < 2.1


def test_faded_takes_zeros() -> None:
    assert faded(Times.certain(0.0), Times.certain(1.0), 0.5).p50_ms == pytest.approx(math.sqrt(LEAST_VALUE))
