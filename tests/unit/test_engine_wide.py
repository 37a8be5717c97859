"""When the second session is made, measured, kept and dropped; sessions and time are made up."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from nearmesh_agent.engines.onnx.wide import CALLS, THREAD, Wide

from nearmesh.errors import EngineFailure, PackageError


class FakeSession:
    """Answers with its own name, and moves the clock on."""

    def __init__(self, name, cost_s=0.0, now=None):
        self.name, self.cost_s = name, cost_s
        self.now = [0.0] if now is None else now
        self.calls = 0
        self.meanwhile = lambda: None
        self.error = None

    def run(self, outputs, inputs):
        self.calls += 1
        if self.error:
            raise self.error
        self.now[0] += self.cost_s
        self.meanwhile()
        return dict.fromkeys(outputs, self.name)


def join_loaders():
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD):
            thread.join(20)
            assert not thread.is_alive()


def pair(wide_s):
    """A narrow session that takes 1 s, a wide one, and both behind a Wide."""
    now = [0.0]
    narrow, wide = FakeSession("narrow", 1.0, now), FakeSession("wide", wide_s, now)
    return narrow, wide, Wide(narrow, lambda: wide, clock=lambda: now[0])


def ask(both, *, alone=True):
    return both.run(["y"], {}, alone=alone)["y"]


def in_trial(wide_s=0.1):
    narrow, wide, both = pair(wide_s)
    assert ask(both) == "narrow"
    join_loaders()
    return narrow, wide, both


@pytest.mark.parametrize(("wide_s", "kept"), [(0.1, True), (0.8, True), (0.92, False), (1.0, False), (3.0, False)])
def test_it_is_kept_if_it_is_worth_it(wide_s, kept):
    narrow, wide, both = in_trial(wide_s)
    assert [ask(both) for _ in range(2 * CALLS)] == ["narrow", "wide"] * CALLS
    assert ask(both) == ("wide" if kept else "narrow")
    assert ask(both, alone=False) == "narrow"
    assert both.sessions == kept
    assert f"{1 / wide_s:.2f} times as fast" in both.detail and both.detail.startswith("not kept") != kept
    assert narrow.calls + wide.calls == 1 + 2 * CALLS + 2


def test_one_slow_call_decides_nothing():
    _, wide, both = in_trial(0.5)
    wide.cost_s = 60.0
    assert [ask(both), ask(both)] == ["narrow", "wide"]
    wide.cost_s = 0.5
    for _ in range(2 * CALLS - 2):
        ask(both)
    assert both.detail == "2.00 times as fast"


def test_nothing_is_made_before_a_lone_call():
    opened = []
    both = Wide(FakeSession("narrow"), lambda: opened.append(1))
    for _ in range(10):
        assert ask(both, alone=False) == "narrow"
    assert opened == [] and both.sessions == 0


def test_no_call_waits_for_the_second_session():
    ready, wide = threading.Event(), FakeSession("wide")

    def open_wide():
        assert ready.wait(20)
        return wide

    both = Wide(FakeSession("narrow"), open_wide)
    assert [ask(both) for _ in range(5)] == ["narrow"] * 5
    assert both.detail == "loading" and both.sessions == 0
    ready.set()
    join_loaders()
    assert both.detail == "being measured" and both.sessions == 1


def test_it_is_made_once_however_many_ask():
    opened, gate = [], threading.Barrier(8)
    both = Wide(FakeSession("narrow"), lambda: opened.append(1) or FakeSession("wide"))

    def one(_):
        gate.wait(20)
        return ask(both)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(8))) <= {"narrow", "wide"}
    join_loaders()
    assert opened == [1]


def test_a_call_that_others_joined_is_not_counted():
    _, wide, both = in_trial(0.1)
    # Beside each wide call another one comes: lone calls are never seen.
    wide.meanwhile = lambda: ask(both, alone=False)
    assert [ask(both) for _ in range(3)] == ["narrow", "wide", "wide"]
    assert both.detail == "being measured"
    wide.meanwhile = lambda: None
    found = [ask(both) for _ in range(2 * CALLS - 1)]
    assert found.count("wide") == CALLS and both.detail == "10.00 times as fast"


def test_two_calls_are_not_measured_at_a_time():
    narrow, wide, both = in_trial(0.1)
    seen = []

    def second():
        narrow.meanwhile = lambda: None
        seen.append(ask(both))

    narrow.meanwhile = second
    ask(both)
    # The inner call found the outer one measuring, and the outer one was disturbed.
    assert seen == ["narrow"] and wide.calls == 0
    assert ask(both) == "narrow" and ask(both) == "wide"


def test_threads_that_ask_during_the_trial_all_get_answers():
    narrow, wide, both = in_trial(0.1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: ask(both, alone=number % 2 == 0), range(400)))
    assert len(found) == 400 and set(found) <= {"narrow", "wide"}
    assert narrow.calls + wide.calls == 401


def test_one_that_cannot_be_loaded():
    def open_wide():
        raise PackageError("no memory")

    both = Wide(FakeSession("narrow"), open_wide)
    ask(both)
    join_loaders()
    assert both.detail == "not loaded: no memory" and both.sessions == 0
    assert ask(both) == "narrow"


def test_close_drops_one_that_is_still_being_made():
    ready, made = threading.Event(), []

    def open_wide():
        assert ready.wait(20)
        wide = FakeSession("wide")
        made.append(weakref.ref(wide))
        return wide

    both = Wide(FakeSession("narrow"), open_wide)
    ask(both)
    both.close()
    ready.set()
    join_loaders()
    gc.collect()
    assert made[0]() is None and both.sessions == 0


@pytest.mark.parametrize("calls", [0, 2, 2 * CALLS])
def test_close_gives_back_the_memory(calls):
    _, wide, both = in_trial(0.1)
    for _ in range(calls):
        ask(both)
    assert both.sessions == 1
    both.close()
    both.close()
    gone = weakref.ref(wide)
    both._open_wide = None
    del wide
    gc.collect()
    assert gone() is None


def test_a_wide_session_that_fails_is_given_up_and_the_narrow_one_answers():
    _, wide, both = in_trial()
    for _ in range(2 * CALLS):
        ask(both)
    assert ask(both) == "wide"
    wide.error = EngineFailure("out of memory")
    assert ask(both) == "narrow"
    wide.error = None
    assert ask(both) == "narrow" and "out of memory" in both.detail
