"""What the agent sees of serving before it decides what training may have."""

from __future__ import annotations

from threading import Thread
from types import SimpleNamespace
from typing import Any

from nearmesh_agent.serving.occupancy import Occupancy
from nearmesh_agent.serving.queue import Answer
from nearmesh_agent.serving.tally import Tally
from nearmesh_agent.training.throttle import EVERY_S, Throttle


class Node:
    """Replicas without engines, and a throttle on a clock of its own."""

    def __init__(self, *models: str) -> None:
        self.replicas = [Replica(model) for model in models]
        self.utilization = 0.1
        self.now_s = 100.0
        replicas: Any = self.replicas
        self.occupancy = Occupancy()
        self.throttle = Throttle(
            replicas,
            lambda: self.utilization,
            cpu_share=0.5,
            occupancy=self.occupancy,
            clock=lambda: self.now_s,
        )
        self.throttle.workers = 1

    def run(self, seconds: float, *, beside_ms: float = 10.0) -> None:
        """Each replica answers 20 requests a second, in 10 ms without training."""
        for _ in range(round(seconds / EVERY_S)):
            self.now_s += EVERY_S
            for replica in self.replicas:
                for _ in range(5):
                    replica.answer(beside_ms if self.throttle.share and self.throttle.workers else 10.0)
            self.throttle.decide()


class Replica:
    def __init__(self, name: str) -> None:
        self.name = name
        self.tally = Tally()

    def answer(self, ms: float) -> None:
        answer: Any = SimpleNamespace(queue_ms=1.0, compute_ms=ms - 2.0, batch_rows=1, first=True)
        self.tally.answered(answer, rows=1, decode_ms=0.5, encode_ms=0.5, now_ms=0)


def test_requests_that_take_longer_beside_training_slow_it_and_it_says_by_which_figures() -> None:
    node = Node("quick", "slow")
    node.run(30)
    assert (node.throttle.paused, node.throttle.share) == ("", 0.5)
    node.run(10, beside_ms=30.0)
    assert 0 < node.throttle.share < 0.5
    assert "p99 of requests to quick was 30.0 ms beside it, 10.0 ms without" in node.throttle.paused


def test_without_apps_at_work_nothing_is_slowed_or_said() -> None:
    node = Node("digits")
    node.throttle.workers = 0
    node.utilization = 0.9
    node.run(5)
    assert node.throttle.paused == ""


def test_requests_that_are_refused_count_once() -> None:
    node = Node("digits")
    node.run(1)
    node.utilization = 0.6
    node.replicas[0].tally.outcomes["OVERLOADED"] = 3
    node.run(EVERY_S)
    assert (node.throttle.paused, node.throttle.share) == ("stands still: requests are refused", 0.0)
    node.run(10)
    assert node.throttle.share > 0


def test_what_happened_before_anything_trained_is_passed_over() -> None:
    node = Node("digits")
    node.utilization = 0.6
    node.replicas[0].tally.outcomes["OVERLOADED"] = 3
    for _ in range(500):
        node.replicas[0].answer(900.0)
    node.throttle.begin()
    node.run(30)
    assert "requests are refused" not in node.throttle.paused
    node.utilization = 0.1
    node.run(30)
    assert node.throttle.paused == ""
    # Had the slow ones counted, this would be no rise.
    node.run(10, beside_ms=30.0)
    assert "10.0 ms without" in node.throttle.paused


def test_what_was_wrong_with_requests_themselves_is_not_for_training_to_mend() -> None:
    node = Node("digits")
    node.utilization = 0.6
    node.replicas[0].tally.outcomes.update(INVALID_INPUT=50, ENGINE_FAILURE=50, CANCELLED=50)
    node.run(1)
    assert node.throttle.share > 0


def test_a_replica_that_came_or_went_between_two_looks_is_no_trouble() -> None:
    node = Node("digits")
    node.run(5)
    del node.replicas[:]
    node.run(1)
    node.replicas.append(Replica("other"))
    node.run(1)
    assert node.throttle.share > 0


def test_times_of_single_requests_are_taken_once_and_bounded() -> None:
    tally = Tally()
    for number in range(600):
        tally.answered(
            Answer(outputs={}, queue_ms=1.0, compute_ms=number, batch_rows=1, first=True),
            rows=1,
            decode_ms=0.0,
            encode_ms=0.0,
            now_ms=0,
        )
    taken = tally.take_latest_ms()
    assert len(taken) == 512 and taken[-1] == 600.0
    assert tally.take_latest_ms() == []


def test_threads_of_training_that_give_way_keep_no_engine_call_from_the_other_cores() -> None:
    # The one that asks, and one of training.
    occupancy = Occupancy(runnable=lambda: 2)
    assert not occupancy.enter()
    occupancy.leave()
    occupancy.yielding = 1
    assert occupancy.enter()
    # Another engine call does not give way.
    busy = Occupancy(runnable=lambda: 3)
    busy.yielding = 1
    assert not busy.enter()


def test_training_that_stands_still_gives_nobody_way() -> None:
    node = Node("digits")
    node.run(1)
    assert node.occupancy.yielding == node.throttle.threads
    node.utilization = 0.9
    node.run(1)
    assert (node.throttle.share, node.occupancy.yielding) == (0.0, 0)
    node.utilization = 0.1
    node.run(10)
    assert node.occupancy.yielding == node.throttle.threads
    node.throttle.workers = 0
    node.run(1)
    assert node.occupancy.yielding == 0


def test_who_listens_hears_when_engine_calls_begin_and_when_none_runs_any_more() -> None:
    occupancy = Occupancy(runnable=lambda: 1)
    heard: list[bool] = []
    occupancy.on_change = heard.append

    def another() -> None:
        occupancy.enter()
        occupancy.leave()

    occupancy.enter()
    beside = Thread(target=another)
    beside.start()
    beside.join()
    assert heard == [True] and occupancy.taken
    occupancy.leave()
    assert heard == [True, False] and not occupancy.taken
