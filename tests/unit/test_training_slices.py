"""When training processes run and when they stand still."""

from __future__ import annotations

import pytest
from nearmesh_agent.training.slices import LONGEST_STOP_S, MOMENT_S, Slices, Starvation


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


def test_beside_engine_calls_they_stand_still_and_have_their_share_of_the_gaps() -> None:
    apps = Apps(0.5, cores=2, threads=1)
    apps.run(1)
    for _ in range(400):
        apps.slices.held = True
        # At once, however short the gap before was.
        assert not apps.slices.step(apps.now_s, 0.0)
        apps.now_s += 0.013
        apps.slices.held = False
        assert apps.slices.step(apps.now_s, 0.0)
        apps.run(0.03)
    assert apps.used_s / apps.now_s > 0.6


def test_engine_calls_without_a_gap_leave_a_moment_now_and_then() -> None:
    apps = Apps(0.5, cores=2, threads=1)
    apps.slices.held = True
    apps.run(60)
    # A moment is over when it is looked at next.
    assert MOMENT_S < apps.used_s / apps.now_s * LONGEST_STOP_S < 2 * MOMENT_S
    assert max(apps.stops_s) <= LONGEST_STOP_S + 1.01 * MOMENT_S


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


class Waiting:
    """Training that wants to run all the time, and gets so much of a core, on a clock of its own."""

    def __init__(self, gets: float, on_a_level: float, pace: float = 1.0) -> None:
        self.starvation = Starvation(0.0)
        self.gets, self.on_a_level, self.pace = gets, on_a_level, pace
        self.wants = True
        self.now_s = 0.0

    def run(self, seconds: float) -> tuple[float, float]:
        """Processor seconds a second, and the part of the time on a level with others."""
        steps = round(seconds / 0.05)
        used = level = 0.0
        for _ in range(steps):
            self.now_s += 0.05
            gets = (self.on_a_level if self.starvation.relieved else self.gets) * self.wants * 0.05
            used += gets
            level += self.starvation.step(self.now_s, gets, self.pace, wants=self.wants)
        return used / (steps * 0.05), level / steps


@pytest.mark.parametrize(
    ("gets", "on_a_level", "comes_to"),
    [
        # Others leave it nothing: it gets a quarter of its pace, whatever that takes.
        (0.0, 1.0, 0.25),
        (0.02, 0.5, 0.25),
        # Not even on a level does it get so much: it stays there.
        (0.0, 0.05, 0.05),
        # It gets enough where it is.
        (0.3, 1.0, 0.3),
    ],
)
def test_training_that_others_leave_nothing_gets_its_turn_all_the_same(
    gets: float, on_a_level: float, comes_to: float
) -> None:
    training = Waiting(gets, on_a_level)
    training.run(10)
    assert training.run(60)[0] == pytest.approx(comes_to, rel=0.15)


def test_training_that_gets_enough_always_comes_last() -> None:
    assert Waiting(0.26, 1.0).run(60)[1] == 0


def test_who_sleeps_or_stands_still_waits_for_nothing() -> None:
    training = Waiting(0.0, 1.0)
    training.wants = False
    assert training.run(60) == (0.0, 0.0)
    # While requests come first, so do others.
    training.wants = True
    training.run(1.1)
    assert training.starvation.relieved
    training.pace = 0.0
    assert training.run(60)[1] == 0


def test_what_is_made_up_for_is_bounded() -> None:
    training = Waiting(0.0, 0.0)
    training.run(600)
    training.on_a_level = 1.0
    # From five seconds at a quarter of its pace, and those that pass meanwhile.
    training.run(1.7)
    assert not training.starvation.relieved
