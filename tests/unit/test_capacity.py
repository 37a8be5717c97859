"""Waiting, held against simulated queues; and how full a node may be."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from nearmesh_controlplane.routing.capacity import (
    UTILIZATIONS,
    bounds,
    soon_enough_ms,
    waiting,
    with_waiting,
)

from nearmesh.routing.times import LEVELS, Times


def queue(servers: int, median_ms: float, sigma: float, utilization: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Service times and times in the system of a queue that was simulated, and its capacity per second."""
    random = np.random.default_rng(5)
    count = 60_000
    service = np.exp(random.normal(np.log(median_ms), sigma, count))
    arrivals = np.cumsum(random.exponential(service.mean() / servers / utilization, count))
    free = [0.0] * servers
    spent = np.empty(count)
    for at, (arrival, takes) in enumerate(zip(arrivals, service, strict=True)):
        start = max(arrival, free[0])
        heapq.heapreplace(free, start + takes)
        spent[at] = start + takes - arrival
    return service, spent, 1000 * servers / service.mean()


@pytest.mark.parametrize(
    ("servers", "median_ms", "sigma", "utilization"),
    [(1, 10.0, 0.3, 0.5), (4, 40.0, 0.3, 0.7), (16, 40.0, 0.4, 0.8), (8, 60.0, 0.5, 0.6), (2, 30.0, 0.1, 0.3)],
)
def test_the_time_on_a_node_is_that_of_a_simulated_queue(
    servers: int, median_ms: float, sigma: float, utilization: float
) -> None:
    service, spent, per_s = queue(servers, median_ms, sigma, utilization)
    alone = np.quantile(service, LEVELS)[None]
    found = with_waiting(alone, np.array([per_s]), np.array([utilization]))[0]
    true = np.quantile(spent, LEVELS)
    assert found[:6] == pytest.approx(true[:6], rel=0.12)
    assert found[6] == pytest.approx(true[6], rel=0.2)
    chance, rate = waiting(alone, np.array([per_s]), np.array([[utilization]]))
    # Errs on the careful side, and not by much.
    assert 0.9 * true[6] <= soon_enough_ms(alone, chance, rate)[0, 0] <= 1.3 * true[6]


def test_an_idle_node_adds_nothing() -> None:
    alone = np.array([Times.spread(20.0, 40.0).ms])
    assert with_waiting(alone, np.array([50.0]), np.array([0.0]))[0] == pytest.approx(alone[0], rel=1e-6)


def test_a_tight_deadline_leaves_a_node_emptier_than_a_loose_one() -> None:
    alone, per_s, weight = np.array([Times.spread(20.0, 30.0).ms] * 3), np.full(3, 50.0), np.ones(1)
    found = bounds(alone, per_s, np.array([[60.0], [150.0], [2000.0]]), weight)
    assert found[0] < found[1] < found[2] == UTILIZATIONS[0]


def test_many_servers_may_be_fuller_than_one() -> None:
    """At the same times: what one request waits for another one does not hold up."""
    alone = np.array([Times.spread(50.0, 70.0).ms] * 2)
    one, many = bounds(alone, np.array([20.0, 640.0]), np.array([[150.0], [150.0]]), np.ones(1))
    assert one < many


def test_one_far_locality_is_given_up_for_many_near_ones() -> None:
    alone, per_s = np.array([Times.spread(20.0, 30.0).ms]), np.array([50.0])
    near, far = [500.0] * 9, [60.0]
    together = bounds(alone, per_s, np.array([near + far]), np.ones(10))
    assert together == bounds(alone, per_s, np.array([near]), np.ones(9))
    # Where the far one asks for nearly everything, it is the other way round.
    weight = np.array([0.001] * 9 + [1.0])
    assert bounds(alone, per_s, np.array([near + far]), weight) < together


def test_where_nobody_is_in_time_a_node_may_be_as_full_as_any() -> None:
    alone = np.array([Times.spread(20.0, 30.0).ms])
    assert bounds(alone, np.array([50.0]), np.array([[-10.0]]), np.ones(1)) == UTILIZATIONS[0]


def test_where_nobody_is_surely_in_time_a_node_is_as_full_as_serves_the_most_in_time() -> None:
    """A full one would be later still. Held against simulated queues of one server."""
    median_ms, sigma, slack_ms = 150.0, 0.1437, 195.0
    service, _, per_s = queue(1, median_ms, sigma, 0.5)
    alone = np.quantile(service, LEVELS)[None]
    (found,) = bounds(alone, np.array([per_s]), np.array([[slack_ms]]), np.ones(1))
    in_time = {u: u * np.mean(queue(1, median_ms, sigma, u)[1] <= slack_ms) for u in UTILIZATIONS.tolist()}
    assert 0.1 < found < UTILIZATIONS[0]
    assert in_time[float(found)] > 0.95 * max(in_time.values()) and in_time[float(found)] > 1.1 * in_time[0.8]
    many = bounds(alone, np.array([64 * per_s]), np.array([[slack_ms]]), np.ones(1))
    assert many == UTILIZATIONS[0], "of many servers one is free soon"
