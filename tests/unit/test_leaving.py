"""The order and the times of a node's way out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nearmesh_agent import leaving
from nearmesh_agent.leaving import END_S, LINGER_S, WITHDRAW_S, Leaving, schedule
from nearmesh_agent.notice.notice import Notice

from nearmesh.v1 import node_pb2 as pb


def test_without_a_notice_everything_has_its_usual_time() -> None:
    plan = schedule(10.0)
    assert (plan.withdraw_s, plan.linger_s, plan.all_s) == (WITHDRAW_S, LINGER_S, WITHDRAW_S + LINGER_S + 10 + END_S)
    assert plan.grace_s(0.1) == plan.grace_s(WITHDRAW_S + LINGER_S) == 10.0


@pytest.mark.parametrize(
    ("grace_s", "left_s", "all_s"),
    [
        # Long enough for everything.
        (10.0, 120.0, 15.0),
        (10.0, 30.0, 15.0),
        (60.0, 30.0, 28.0),
        (10.0, 10.0, 8.0),
        (10.0, 2.0, 1.6),
        (0.0, 2.0, 1.6),
        (10.0, 0.0, 0.0),
    ],
)
def test_a_notice_bounds_all_of_it(grace_s: float, left_s: float, all_s: float) -> None:
    plan = schedule(grace_s, left_s)
    assert plan.all_s == pytest.approx(all_s) and plan.all_s <= left_s
    assert plan.withdraw_s + plan.linger_s <= plan.all_s
    for spent_s in (0.0, plan.withdraw_s + plan.linger_s, plan.all_s, 2 * plan.all_s):
        assert 0 <= plan.grace_s(spent_s) <= max(0.0, min(grace_s, plan.all_s - spent_s))


def test_time_that_the_routes_did_not_need_is_for_what_is_under_way() -> None:
    plan = schedule(60.0, 30.0)
    assert plan.grace_s(0.1) == pytest.approx(28.0 - END_S - 0.1)


class Serving:
    """A servicer that notes what is done to it, in order."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.turned_away, self.told = asyncio.Event(), asyncio.Event()
        self._draining = False
        self.in_flight, self.sequences_kept, self.drained = 2, 1, False

    @property
    def draining(self) -> bool:
        return self._draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._draining = value
        self.done.append(("draining", value))
        if value:
            self.turned_away.set()

    def end_sequences(self) -> None:
        self.done.append("end sequences")
        self.told.set()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WITHDRAW_S", "LINGER_S", "LAST_WORD_S", "END_S"):
        monkeypatch.setattr(leaving, name, 0.01)


WITHDRAWN = pb.WantedState(withdrawn=True)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("confirmed", [True, False])
async def test_the_order(confirmed: bool) -> None:
    serving = Serving()
    way = Leaving(serving, grace_s=0.05, report_now=lambda: serving.done.append("report"))
    assert way.status() == pb.NodeStatus(in_flight=2, sequences=1)

    async def stop(grace_s: float) -> None:
        assert 0 < grace_s <= 0.05
        serving.done.append("stop")
        await serving.told.wait()

    def said() -> None:
        assert way.status().draining and way.status().notice == "told to stop"
        assert not serving.draining, "who has not heard is answered"
        serving.done.append("said")
        if confirmed:
            way.wanted(WITHDRAWN)

    await way.run(said, stop)
    assert serving.done == ["report", "said", ("draining", True), "stop", "end sequences"]
    assert way.until is None


@pytest.mark.usefixtures("short")
async def test_a_server_that_does_not_end_does_not_outlive_the_notice() -> None:
    serving = Serving()
    way = Leaving(serving, grace_s=100.0, report_now=lambda: None)
    way.noticed(Notice(reason="gone soon", left_s=0.2))

    async def stop(grace_s: float) -> None:
        assert grace_s < 0.2
        await asyncio.get_running_loop().create_future()

    start_s = asyncio.get_running_loop().time()
    await way.run(lambda: None, stop)
    assert way.until is not None and way.until - start_s < 0.2
    assert way.status().notice == "gone soon"
    assert "end sequences" in serving.done


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("while_", ["waiting for the routes", "ending what is under way"])
async def test_a_notice_that_comes_after_sigterm_bounds_the_rest(while_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving()
    way = Leaving(serving, grace_s=100.0, report_now=lambda: serving.done.append("report"))
    if while_ == "waiting for the routes":
        monkeypatch.setattr(leaving, "WITHDRAW_S", 100.0)

    def notice() -> None:
        serving.done.clear()
        way.noticed(Notice(reason="gone soon", left_s=0.2))

    def said() -> None:
        if while_ == "waiting for the routes":
            asyncio.get_running_loop().call_soon(notice)

    async def stop(grace_s: float) -> None:
        if while_ == "ending what is under way":
            notice()
        else:
            assert grace_s < 0.2
        await asyncio.get_running_loop().create_future()

    start_s = asyncio.get_running_loop().time()
    await asyncio.wait_for(way.run(said, stop), 20)
    assert way.until is not None and way.until - start_s < 20, "not the hundred seconds of its own"
    assert serving.done[0] == "report" and way.status().notice == "gone soon"
    assert serving.done[-1] == "end sequences"
    # A longer one changes nothing.
    until = way.until
    way.noticed(Notice(reason="later", left_s=1000.0))
    assert way.until == until and way.status().notice == "gone soon"


@pytest.mark.usefixtures("short")
async def test_an_operators_drain_turns_new_work_away_and_can_be_taken_back() -> None:
    serving = Serving()
    way = Leaving(serving, grace_s=1.0, report_now=lambda: serving.done.append("report"))
    drain = pb.WantedState(withdrawn=True, drain=True)
    way.wanted(drain)
    way.wanted(drain)
    assert not serving.draining, "calls that are on their way are answered"
    await serving.turned_away.wait()
    way.wanted(drain)
    assert serving.done == [("draining", True), "report"], "sequences may end when they like"
    assert not way.status().draining, "it does not leave"
    way.wanted(pb.WantedState())
    assert not serving.draining
    # Taken back before it has begun.
    way.wanted(drain)
    way.wanted(pb.WantedState())
    await asyncio.sleep(0.03)
    assert not serving.draining


@pytest.mark.usefixtures("short")
async def test_a_drained_node_that_is_stopped_need_not_wait_for_the_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = Serving()
    way = Leaving(serving, grace_s=0.01, report_now=lambda: None)
    way.wanted(pb.WantedState(withdrawn=True, drain=True))
    await serving.turned_away.wait()
    monkeypatch.setattr(leaving, "WITHDRAW_S", 1000.0)

    async def stop(grace_s: float) -> None:
        """At once."""

    await asyncio.wait_for(way.run(lambda: None, stop), 20)
    # The control plane's word of another time changes nothing any more.
    way.wanted(pb.WantedState())
    assert serving.draining
