"""The replay twin on worlds of a few nodes: what a request takes and costs, who is chosen, what hindsight would do."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from benchmarks.replay.ours import Nearmesh
from benchmarks.replay.policy import FAILURES, OUT_S, Known
from benchmarks.replay.rivals import Cheapest, InverseSquare, LeastRequest, Nearest, PeakEwma, RoundRobin, SkyServe
from benchmarks.replay.simulation import GIVE_UP_S, NEWS_S, REFUSAL_S, known_of, play
from benchmarks.replay.world import Absence, Trouble
from tests.replay_worlds import DEADLINE_MS, HARDWARE, PRICES, Always, steady, world

# The simulation.


def test_a_request_travels_is_served_and_travels_back() -> None:
    played = play(world([1.0]), lambda known: Always(known, first=1))
    assert played.took_s == pytest.approx([(60 + 40) / 1000])
    assert played.usd == pytest.approx(0.4 / 3600 / (4 * 1000 / HARDWARE.service_ms_mean))
    assert played.served.tolist() == [0, 1, 0]


def test_requests_wait_for_a_free_instance_in_the_order_of_their_coming() -> None:
    played = play(world([1.0, 1.0, 1.001], instances=1), Always)
    assert played.took_s * 1000 == pytest.approx([41, 81, 120])


def test_who_would_wait_too_long_is_refused_and_asks_another() -> None:
    policies: list[Always] = []

    def make(known: Known) -> Always:
        policies.append(Always(known, then=1))
        return policies[0]

    played = play(world([1.0] * 10, instances=1), make)
    refused = [heard for heard in policies[0].heard if heard[0] == "refused"]
    # Eight fit into 0.3 s of waiting.
    assert len(refused) == played.extra == 2
    assert max(played.took_s) == pytest.approx(REFUSAL_S + 0.001 + 0.06 + 0.08, abs=0.25)
    assert not played.failed.any()


@pytest.mark.parametrize(
    ("fault", "took_s", "extra"),
    [
        ("slow", 0.001 + 0.4, 0),
        ("lying", 0.001 + 0.4, 0),
        ("erroring", 0.001 + REFUSAL_S + 0.1, 1),
        ("frozen", 0.5 + 0.1, 1),
    ],
)
def test_an_ill_node(fault: Any, took_s: float, extra: int) -> None:
    ill = world([1.0], troubles=(Trouble(0, fault, 0.5, 10.0),))
    played = play(ill, lambda known: Always(known, then=1))
    assert played.took_s == pytest.approx([took_s])
    assert played.extra == extra


def test_a_request_that_nobody_answers_has_failed_and_counts_as_slow() -> None:
    played = play(world([1.0], troubles=(Trouble(0, "frozen", 0.0, 60.0),)), Always)
    assert played.failed.all()
    assert played.took_s == pytest.approx([GIVE_UP_S])


def test_the_first_answer_counts_and_the_other_node_is_given_up() -> None:
    policies: list[Always] = []

    def make(known: Known) -> Always:
        policies.append(Always(known, first=2, then=0, patience_s=0.1))
        return policies[0]

    played = play(world([1.0]), make)
    assert played.took_s == pytest.approx([0.1 + 0.041])
    assert [heard[0] for heard in policies[0].heard] == ["silent", "answered", "overtaken"]
    # The work of both is paid for.
    assert played.served.tolist() == [1, 0, 1]


def test_everyone_hears_a_second_late_that_a_node_leaves_and_it_serves_until_it_is_off() -> None:
    gone = Absence(0, notice_s=10.0, off_s=20.0, on_s=40.0)
    seen: list[tuple[float, bool]] = []

    class Watcher(Always):
        def __init__(self, known: Known) -> None:
            super().__init__(known, then=1)
            self.known = known

        def pick(self, region: int, now_s: float, tried: Collection[int]) -> int:
            seen.append((now_s, self.known.present[0]))
            return super().pick(region, now_s, tried)

    played = play(world([9.0, 10.5, 15.0, 25.0, 40.5, 42.0], absences=(gone,)), Watcher)
    assert [present for at_s, present in seen if at_s != seen[4][0]] == [True, True, False, False, False, True]
    assert NEWS_S == 1.0
    assert played.served.tolist() == [5, 1, 0]


def test_an_inference_costs_what_its_node_costs_when_it_begins() -> None:
    dear = world(
        [1.0, 31.0], price_since_s=np.array([0.0, 30.0]), usd_per_hour=np.array([PRICES, [10 * p for p in PRICES]])
    )
    each = float(dear.usd_per_request[0, 0])
    assert play(dear, Always).usd == pytest.approx(11 * each)


@pytest.mark.parametrize(
    ("fault", "took_s", "ok"),
    [(None, 0.041, True), ("slow", 0.401, True), ("erroring", 0.002, False), ("frozen", GIVE_UP_S, False)],
)
def test_a_copy_tries_a_node_and_keeps_nobody_waiting(fault: Any, took_s: float, ok: bool) -> None:
    heard: list[Any] = []

    class Copying(Always):
        def __init__(self, known: Known) -> None:
            super().__init__(known, first=1)
            self.known = known

        def pick(self, region: int, now_s: float, tried: Collection[int]) -> int:
            self.known.send_copy(region, 0, now_s)
            assert self.known.alive(0) is (fault != "frozen")
            return super().pick(region, now_s, tried)

        def copied(self, *told: Any) -> None:
            heard.append(told)

    ill = () if fault is None else (Trouble(0, fault, 0.0, 60.0),)
    played = play(world([1.0], troubles=ill), Copying)
    assert played.took_s == pytest.approx([0.1])
    assert played.served.tolist() == [int(ok), 1, 0]
    assert heard == [(0, 0, pytest.approx(1 + took_s), pytest.approx(took_s), ok)]


# The rivals.


def picks(policy: Any, count: int, now_s: float = 0.0) -> list[int]:
    return [policy.pick(0, now_s, ()) for _ in range(count)]


def known(**changes: Any) -> Known:
    return known_of(world(**changes))


def test_nearest_and_cheapest_move_on_to_the_next_one() -> None:
    assert [Nearest(known()).pick(0, 0.0, tried) for tried in ((), (0,), (0, 1), (0, 1, 2))] == [0, 1, 2, -1]
    assert [Cheapest(known()).pick(0, 0.0, tried) for tried in ((), (2,), (1, 2))] == [2, 1, 0]


def test_of_nodes_equally_far_the_cheaper_one_is_nearest() -> None:
    trips = np.array([[1.0, 1.0, 1.0]] * 3)
    assert picks(Nearest(known(mean_ms=trips)), 1) == [2]


def test_within_reach_far_nodes_are_for_emergencies_only() -> None:
    policy = RoundRobin(known(), reach_ms=100.0)
    assert set(picks(policy, 10)) == {0, 1}
    assert policy.pick(0, 0.0, (0, 1)) == 2


def test_inverse_square_goes_by_the_price() -> None:
    found = picks(InverseSquare(known()), 4000)
    weights = np.array(PRICES) ** -2
    shares = np.bincount(found, minlength=3) / len(found)
    assert shares == pytest.approx(weights / weights.sum(), abs=0.03)


def test_least_request_avoids_who_is_busy() -> None:
    policy = LeastRequest(known())
    assert np.bincount(picks(policy, 300), minlength=3).tolist() == pytest.approx([100, 100, 100], abs=5)


def test_peak_ewma_flees_a_peak_and_forgets_it() -> None:
    policy = PeakEwma(known(mean_ms=np.ones((3, 3))))
    policy.sent(0, 0)
    policy.answered(0, 0, 1.0, 3.0, 0.0, 0.0)
    soon = picks(policy, 90, now_s=1.0)
    # Only who is drawn twice is chosen all the same: one time in nine.
    assert soon.count(0) < 20
    for node in soon:
        policy.ended(0, node, 1.0, 0.04)
    for node in range(3):
        policy.sent(0, node)
        policy.answered(0, node, 100.0, 0.04, 0.0, 0.0)
    assert picks(policy, 300, now_s=100.0).count(0) > 60


def test_skyserve_takes_on_demand_nodes_only_for_spot_ones_that_are_missing() -> None:
    facts = known()
    policy = SkyServe(facts)
    assert set(picks(policy, 12)) == {1, 2}
    facts.present[2] = False
    policy.changed(0.0)
    assert set(picks(policy, 12)) == {0, 1}


def test_a_rival_leaves_a_node_alone_that_fails_again_and_again() -> None:
    policy = Nearest(known())
    for _ in range(FAILURES):
        assert policy.pick(0, 1.0, ()) == 0
        policy.failed(0, 0, 1.0, 0.1, refused=False)
    assert policy.pick(0, 1.0, ()) == 1
    assert policy.pick(0, 1.0 + OUT_S, ()) == 0


# Ours.


def test_ours_takes_the_cheapest_that_is_in_time() -> None:
    played = play(world(steady(20)), Nearmesh)
    assert played.served.tolist() == [0, len(played.took_s), 0]
    assert (played.took_s <= DEADLINE_MS / 1000).all()


def test_ours_spills_over_when_the_cheapest_is_full() -> None:
    # One node makes about 100 a second.
    played = play(world(steady(120, 30.0), duration_s=30.0), Nearmesh)
    assert played.served[0] > 0.2 * len(played.took_s)
    assert played.served[1] > 0.4 * len(played.took_s)
    late = played.took_s[len(played.took_s) // 2 :] > DEADLINE_MS / 1000
    assert late.mean() < 0.01


@pytest.mark.parametrize("fault", ["slow", "erroring", "frozen", "lying"])
def test_ours_leaves_an_ill_node(fault: Any) -> None:
    ill = world(steady(20), troubles=(Trouble(1, fault, 20.0, 60.0),))
    played = play(ill, Nearmesh)
    settled = ill.arrival_s > 35.0
    assert (played.took_s[settled] <= DEADLINE_MS / 1000).mean() > 0.95
    assert not played.failed.any()


def test_ours_moves_back_when_a_spot_machine_does() -> None:
    gone = world(steady(20), absences=(Absence(1, 10.0, 20.0, 30.0),))
    served = play(gone, Nearmesh).served
    # For the twenty seconds that it was away, on demand.
    assert 15 * 20 < served[0] < 30 * 20
    assert served[1] > 25 * 20
