"""How often a SuperNode looks for messages, and for the answers of its app."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
from nearmesh_agent.training import pauses
from nearmesh_agent.training.pauses import ANSWER_S, FOR_MESSAGES_S, LEAST_S, Pauses

FLOWER = "flwr.supernode.start_client_internal"


class World:
    """A clock that pauses move."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []
        self.pauses = Pauses(lambda: self.now_s, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.mark.parametrize(
    ("waited_s", "pause_s"), [(0.0, LEAST_S), (4.0, LEAST_S), (20.0, 1.0), (40.0, 2.0), (60.0, 3.0), (3600.0, 3.0)]
)
def test_a_pause_is_a_part_of_what_was_waited_and_never_longer_than_flowers(waited_s: float, pause_s: float) -> None:
    world = World()
    world.pauses.sleep(3)
    world.now_s = 100.0 + waited_s
    world.pauses.sleep(3)
    assert world.slept == [LEAST_S, pytest.approx(pause_s)]


def test_a_message_makes_it_quick_again() -> None:
    world = World()
    world.pauses.sleep(3)
    world.now_s += 600
    world.pauses.sleep(0.5)
    world.pauses.sleep(3)
    assert world.slept == [LEAST_S, ANSWER_S, LEAST_S]


def test_an_hour_of_waiting_is_little_more_work_for_the_superlink_than_with_flowers_own_pauses() -> None:
    world = World()
    while world.now_s < 3700:
        world.pauses.sleep(3)
    assert len(world.slept) < 3600 / 3 * 1.1


def test_the_rest_of_time_is_there() -> None:
    module = SimpleNamespace()
    pauses.of(module)
    assert module.time.time() > 1.7e9


def test_flowers_module_pauses_by_its_time_and_for_these_two() -> None:
    """Another version may look in another way, and then this has to be looked at again."""
    module = importlib.import_module(FLOWER)
    source = Path(inspect.getfile(module)).read_text("utf-8")
    slept = {
        ast.literal_eval(call.args[0])
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "time.sleep"
    }
    assert {seconds >= FOR_MESSAGES_S for seconds in slept} == {True, False}
    assert slept == {3, 0.5}
