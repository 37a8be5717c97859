"""When training processes run and when they stand still."""

from __future__ import annotations

import pytest
from nearmesh_agent.training.slices import LONGEST_STOP_S, MOMENT_S, Slices


class Apps:
    """Apps that compute in so many threads whenever they run, on a clock of their own."""

    def __init__(self, share: float, cores: int, threads: float) -> None:
        self.slices = Slices(cores, 0.0)
        self.slices.share = share
        self.threads = threads
        self.now_s = 0.0
        self.used_s = 0.0
        # Each time that they stood still.
        self.stops_s: list[float] = []

    def run(self, seconds: float) -> float:
        """Processor seconds a second."""
        began_s, used_s = self.now_s, self.used_s
        while self.now_s < began_s + seconds:
            wait_s = self.slices.look_in_s()
            used = self.threads * wait_s if self.slices.running else 0.0
            was_running = self.slices.running
            self.now_s += wait_s
            self.used_s += used
            if not was_running:
                self.stops_s[-1] += wait_s
            if not self.slices.step(self.now_s, used) and was_running:
                self.stops_s.append(0.0)
        return (self.used_s - used_s) / (self.now_s - began_s)


@pytest.mark.parametrize(
    ("share", "cores", "threads", "uses"),
    [
        (0.5, 2, 2, 1.0),
        (0.5, 2, 1, 1.0),
        (0.3, 2, 2, 0.6),
        (0.1, 2, 1, 0.2),
        (0.05, 2, 2, 0.1),
        (0.25, 16, 16, 4.0),
        (0.5, 1, 1, 0.5),
        (1.0, 2, 2, 2.0),
        # More threads than cores do not use more than the cores; less do not use their budget.
        (0.9, 2, 1, 1.0),
        (0.5, 2, 0.2, 0.2),
    ],
)
def test_they_use_their_share_of_the_cores(share: float, cores: int, threads: float, uses: float) -> None:
    apps = Apps(share, cores, threads)
    apps.run(2)
    assert apps.run(60) == pytest.approx(uses, rel=0.1)
    assert max(apps.stops_s, default=0.0) <= LONGEST_STOP_S + 1.01 * MOMENT_S


def test_who_uses_less_than_the_budget_never_stands_still() -> None:
    apps = Apps(0.5, 2, 0.8)
    apps.run(60)
    assert apps.stops_s == []


def test_without_a_share_they_run_for_a_moment_about_once_a_second() -> None:
    apps = Apps(0.0, 2, 2)
    apps.run(2)
    assert 0 < apps.run(60) < 0.12
    assert max(apps.stops_s) <= LONGEST_STOP_S + 1.01 * MOMENT_S
    assert len(apps.stops_s) == pytest.approx(60 / LONGEST_STOP_S, rel=0.1)


def test_a_long_wait_saves_up_no_more_than_a_moment_of_full_speed() -> None:
    apps = Apps(0.25, 2, 0.0)
    apps.run(600)
    apps.threads = 2
    assert apps.run(1) < 2 * (0.25 * 2)


def test_a_smaller_share_holds_at_once_and_a_larger_one_is_not_held_up_by_old_debts() -> None:
    apps = Apps(0.5, 2, 2)
    apps.run(10)
    apps.slices.share = 0.05
    assert apps.run(2) < 0.25
    apps.slices.share = 0.5
    apps.run(1)
    assert apps.run(5) == pytest.approx(1.0, rel=0.1)
