"""Distributions of times: what a handful of quantiles says, held against samples."""

from __future__ import annotations

import numpy as np
import pytest

from nearmesh.routing.times import (
    CELLS,
    LEVELS,
    Times,
    chance_within,
    matrix,
    mixture,
    share_of_sum_within,
    sum_of,
)

RANDOM = np.random.default_rng(7)
NETWORK = np.exp(RANDOM.normal(4.4, 0.08, 200_000))
SERVICE = np.exp(RANDOM.normal(3.0, 0.45, 200_000))
# What is asked of the arithmetic; the distributions are smooth.
RELATIVE = 0.02


def measured(samples: np.ndarray) -> Times:
    return Times(tuple(float(q) for q in np.quantile(samples, LEVELS)))


def test_the_cells_are_all_there_is() -> None:
    assert sum(CELLS) == pytest.approx(1.0)


@pytest.mark.parametrize("limit_ms", [90.0, 105.0, 115.0, 130.0, 150.0, 180.0])
def test_the_chance_of_a_sum(limit_ms: float) -> None:
    true = float((limit_ms >= NETWORK + SERVICE).mean())
    assert chance_within(measured(NETWORK), measured(SERVICE), limit_ms) == pytest.approx(true, abs=0.015)
    assert chance_within(measured(SERVICE), measured(NETWORK), limit_ms) == pytest.approx(true, abs=0.03)


def test_the_chance_at_the_line_that_decides() -> None:
    """Where 99 % of the samples are in time, so says the sum, to a fifth of a percent."""
    limit_ms = float(np.quantile(NETWORK + SERVICE, 0.99))
    assert chance_within(measured(NETWORK), measured(SERVICE), limit_ms) == pytest.approx(0.99, abs=0.002)


def test_the_quantiles_of_a_sum() -> None:
    found, true = sum_of(measured(NETWORK), measured(SERVICE)), measured(NETWORK + SERVICE)
    assert found.ms == pytest.approx(true.ms, rel=RELATIVE)


@pytest.mark.parametrize("limit_ms", [70.0, 80.0, 95.0, 120.0])
def test_what_is_expected_to_be_gained_below_a_limit(limit_ms: float) -> None:
    true = float(np.maximum(0.0, limit_ms - NETWORK).mean())
    assert measured(NETWORK).gain_ms(limit_ms) == pytest.approx(true, abs=0.5)
    assert Times.certain(50.0).gain_ms(limit_ms) == pytest.approx(limit_ms - 50.0)
    assert Times.certain(200.0).gain_ms(limit_ms) == 0.0


def test_the_quantiles_of_a_mixture() -> None:
    found = mixture([measured(NETWORK), measured(SERVICE)], [3, 1])
    true = measured(np.concatenate([NETWORK, SERVICE[: len(SERVICE) // 3]]))
    assert found.p50_ms == pytest.approx(true.p50_ms, rel=0.03)
    assert found.p99_ms == pytest.approx(true.p99_ms, rel=0.03)
    assert mixture([measured(NETWORK)], [1]) == measured(NETWORK)


def test_what_is_certain_only_moves_the_other() -> None:
    assert sum_of(Times.certain(10.0), Times.certain(5.0)) == Times.certain(15.0)
    moved = sum_of(Times.certain(10.0), measured(SERVICE))
    assert moved.ms == tuple(q + 10 for q in measured(SERVICE).ms)
    assert chance_within(Times.certain(10.0), Times.certain(5.0), 15.0) == pytest.approx(1.0)
    assert chance_within(Times.certain(10.0), Times.certain(5.0), 14.9) == 0.0


def test_two_quantiles_make_a_distribution() -> None:
    found = Times.spread(20.0, 40.0)
    assert (found.p50_ms, found.p95_ms) == (pytest.approx(20.0), pytest.approx(40.0))
    assert list(found.ms) == sorted(found.ms)
    assert Times.spread(20.0, 20.0) == Times.certain(20.0) == Times.spread(20.0, 10.0)
    assert Times.spread(0.0, 30.0) == Times.certain(30.0)


def test_beyond_the_last_quantile_the_tail_goes_on() -> None:
    found = Times.spread(20.0, 40.0)
    assert found.share_within(found.p99_ms) == pytest.approx(0.99)
    assert 0.99 < found.share_within(1.3 * found.p99_ms) < 1.0
    assert found.share_within(0.0) == 0.0


@pytest.mark.parametrize(
    "wire",
    [[], [1.0] * 6, [1.0] * 8, [3.0, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0], [-1.0, *[1.0] * 6], [*[1.0] * 6, float("inf")]],
)
def test_what_is_no_distribution_is_not_taken_for_one(wire: list[float]) -> None:
    assert Times.of(wire) is None


def test_a_distribution_travels() -> None:
    assert Times.of(list(measured(SERVICE).ms)) == measured(SERVICE)
    with pytest.raises(ValueError, match="3 quantiles instead of 7"):
        Times((1.0, 2.0, 3.0))


def test_many_pairs_at_once_are_as_one_by_one() -> None:
    networks = [Times.spread(ms, 1.1 * ms) for ms in (10.0, 50.0, 120.0)]
    services = [Times.spread(ms, 2.0 * ms) for ms in (5.0, 20.0)]
    found = share_of_sum_within(matrix(networks)[:, None, :], matrix(services)[None, :, :], np.asarray(100.0))
    assert found.shape == (3, 2)
    for row, network in zip(found, networks, strict=True):
        for cell, service in zip(row, services, strict=True):
            assert cell == pytest.approx(chance_within(network, service, 100.0))
