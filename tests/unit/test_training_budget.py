"""How much of the processor training may have beside serving."""

from __future__ import annotations

import pytest
from nearmesh_agent.training.budget import (
    CALM_FOR_S,
    GAPS,
    LEAST_SHARE,
    LOOK_EVERY_S,
    LOOK_S,
    SETTLE_S,
    Budget,
    Decision,
    Serving,
)

TICK_S = 0.25


class Node:
    """A node under a budget, on a clock of its own: requests to one model, which take longer beside training."""

    def __init__(self, cpu_share: float = 0.5) -> None:
        self.budget = Budget(cpu_share)
        self.now_s = 1000.0
        self.training = True
        self.utilization = 0.1
        self.refused = 0
        # Of each second, and what one takes without training; beside it, by its share of the cores.
        self.requests_per_s = 0.0
        self.without_ms = 10.0
        self.more_ms = 0.0
        self.share = 0.0
        self.decisions: list[Decision] = []

    def run(self, seconds: float) -> Decision:
        """The last decision after so long."""
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            beside = self.training and self.share > 0
            takes_ms = self.without_ms + (self.more_ms * self.share if beside else 0.0)
            requests = [takes_ms] * round(self.requests_per_s * TICK_S)
            self.budget.saw("digits", requests, beside=beside, now_s=self.now_s)
            decision = self.budget.decide(
                Serving(utilization=self.utilization, refused=self.refused), self.now_s, training=self.training
            )
            self.share = decision.share
            self.decisions.append(decision)
        return self.decisions[-1]

    def given(self, last_s: float) -> float:
        """The mean share of the last seconds."""
        last = [decision.share for decision in self.decisions[-round(last_s / TICK_S) :]]
        return sum(last) / len(last)


@pytest.mark.parametrize("cpu_share", [0.05, 0.25, 0.5, 1.0])
def test_without_requests_training_comes_to_have_its_whole_budget_and_no_more(cpu_share: float) -> None:
    node = Node(cpu_share)
    node.run(10)
    assert node.run(60) == Decision(cpu_share, between=True)
    assert max(decision.share for decision in node.decisions) == cpu_share
    # It begins with less.
    assert node.decisions[0].share == pytest.approx(max(LEAST_SHARE, cpu_share / 2))


def test_requests_that_take_no_longer_beside_training_cost_it_nothing_but_looks() -> None:
    node = Node()
    node.requests_per_s, node.more_ms = 20, 1.0
    node.run(60)
    assert {decision.why for decision in node.decisions} == {""}
    assert node.given(30) == pytest.approx(0.5 * (1 - LOOK_S / LOOK_EVERY_S), rel=0.1)


def test_where_nobody_asks_training_does_not_stand_still_to_look() -> None:
    node = Node()
    node.run(10)
    node.run(30)
    assert node.given(30) == 0.5


def test_what_many_requests_take_is_known_without_more_looks() -> None:
    node = Node()
    node.requests_per_s = 1000
    node.run(60)
    assert node.given(15) > 0.5 * (1 - LOOK_S / LOOK_EVERY_S / 2)


def test_when_requests_take_longer_beside_training_it_gets_less_until_they_do_not() -> None:
    node = Node()
    # Allowed are 2.5 ms more: a share of 0.25.
    node.requests_per_s, node.more_ms = 20, 10.0
    node.run(120)
    assert LEAST_SHARE < node.given(30) <= 0.3
    slowed = [decision for decision in node.decisions if decision.why]
    assert slowed[0].why.startswith("slowed to ")
    assert slowed[0].why.endswith(" of the cores: p99 of requests to digits was 14.9 ms beside it, 10.0 ms without")


def test_what_hurt_is_tried_again_more_and_more_rarely_than_what_did_not() -> None:
    node = Node()
    node.requests_per_s, node.more_ms = 20, 10.0
    node.run(60)
    shares = [decision.share for decision in node.decisions[-round(60 / TICK_S) :] if decision.share]
    node.run(240)
    later = [decision.share for decision in node.decisions[-round(240 / TICK_S) :] if decision.share]
    # Beside training a request takes too long above 0.25; little of the time is spent there.
    assert sum(share > 0.26 for share in later) / len(later) < 0.35 < sum(share > 0.2 for share in shares) / len(shares)


def test_it_gets_its_whole_budget_back_when_requests_no_longer_suffer() -> None:
    node = Node()
    node.requests_per_s, node.more_ms = 20, 30.0
    assert node.run(60).why
    node.more_ms = 0.0
    node.run(120)
    node.requests_per_s = 0.0
    assert node.run(10) == Decision(0.5, between=True)


def test_however_much_requests_suffer_a_round_ends_in_the_end() -> None:
    node = Node()
    node.requests_per_s, node.more_ms = 20, 10_000.0
    node.run(120)
    assert node.given(60) >= LEAST_SHARE * (1 - LOOK_S / LOOK_EVERY_S) * 0.95


def test_one_slow_request_beside_training_may_be_chance() -> None:
    node = Node()
    node.requests_per_s = 20
    node.run(30)
    node.budget.saw("digits", [500.0, 500.0], beside=True, now_s=node.now_s)
    node.run(SETTLE_S)
    assert {decision.why for decision in node.decisions} == {""}
    node.budget.saw("digits", [500.0] * 10, beside=True, now_s=node.now_s)
    assert node.run(1).why


def test_few_requests_say_nothing_of_a_percentile() -> None:
    node = Node()
    node.budget.saw("digits", [10.0] * 19, beside=False, now_s=node.now_s)
    node.budget.saw("digits", [500.0] * 19, beside=True, now_s=node.now_s)
    assert node.run(TICK_S).why == ""
    node.budget.saw("digits", [10.0], beside=False, now_s=node.now_s)
    node.budget.saw("digits", [500.0], beside=True, now_s=node.now_s)
    assert node.run(TICK_S).why


def test_a_slow_model_does_not_hide_what_a_quick_one_suffers() -> None:
    node = Node()
    for _ in range(40):
        node.budget.saw("reader", [900.0] * 10, beside=False, now_s=node.now_s)
        node.budget.saw("reader", [900.0] * 10, beside=True, now_s=node.now_s)
    node.requests_per_s, node.more_ms = 20, 100.0
    assert "requests to digits" in node.run(30).why


@pytest.mark.parametrize(
    ("utilization", "share"),
    [(0.0, 0.5), (0.5, 0.5), (0.6, 0.357), (0.7, 0.214), (0.8, 0.071), (0.84, LEAST_SHARE)],
)
def test_the_more_serving_takes_the_less_is_left_for_training(utilization: float, share: float) -> None:
    node = Node()
    node.run(10)
    node.utilization = utilization
    decision = node.run(TICK_S)
    assert decision.share == pytest.approx(share, abs=0.001)
    assert decision.why == (
        "" if share == 0.5 else f"slowed to {share:.0%} of the cores: serving takes {utilization:.0%} of the node"
    )


@pytest.mark.parametrize(
    ("utilization", "refused", "why"),
    [
        (0.85, 0, "stands still: serving takes 85% of the node"),
        (3.0, 0, "stands still: serving takes 300% of the node"),
        (0.6, 1, "stands still: requests are refused"),
    ],
)
def test_beside_overloaded_serving_training_stands_still_until_it_was_calm_for_a_while(
    utilization: float, refused: int, why: str
) -> None:
    node = Node()
    node.run(10)
    node.utilization, node.refused = utilization, refused
    assert node.run(60) == Decision(0.0, why)
    # Not yet calm: it stays overloaded.
    node.utilization, node.refused = 0.8, 0
    assert node.run(60).share == 0.0
    node.utilization = 0.3
    assert node.run(CALM_FOR_S - TICK_S).share == 0.0
    assert node.run(2 * TICK_S) == Decision(0.5, between=True)
    # What is nearly too much does not begin an overload.
    node.utilization = 0.8
    assert node.run(60).share > 0.0


def test_refusals_of_an_idle_node_are_not_for_training_to_mend() -> None:
    node = Node()
    node.run(10)
    node.refused = 5
    assert node.run(5) == Decision(0.5, between=True)


def test_while_nothing_trains_nothing_stands_still_and_the_figures_without_it_are_learnt() -> None:
    node = Node()
    node.training, node.requests_per_s = False, 20
    node.run(20)
    assert node.given(10) == 0.5
    # So the first look comes later than the first judgement.
    node.training, node.more_ms = True, 100.0
    node.run(2)
    assert node.run(1).why


def test_where_engine_calls_leave_gaps_training_runs_in_these() -> None:
    node = Node()
    node.utilization = GAPS - 0.01
    assert node.run(1).between
    node.utilization = GAPS
    assert not node.run(1).between
    # Requests that suffer nonetheless have the machine for themselves from then on.
    node.requests_per_s, node.more_ms = 20, 100.0
    assert node.run(30).why
    assert node.run(30).between
