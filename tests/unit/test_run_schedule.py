"""When the rounds of a run may begin."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from nearmesh_controlplane.runs.schedule import NodeNow, Schedule, Wait, parse, wait

from nearmesh.errors import InvalidInput


def at(clock: str, day: int = 2) -> float:
    """A time of a day in March."""
    hours, minutes, *seconds = map(int, clock.split(":"))
    return datetime(2026, 3, day, hours, minutes, *seconds, tzinfo=UTC).timestamp()


def node(name: str = "node-a", busy: float | None = 0.1, costs: float | None = 0.5) -> NodeNow:
    return NodeNow(node=name, utilization=busy, usd_per_hour=costs)


def test_without_conditions_a_round_may_begin_at_any_time() -> None:
    assert parse() == Schedule()
    assert wait(parse(), [node(busy=None, costs=None)], at("12:00")) is None
    assert wait(parse(" "), [], at("12:00")) is None


@pytest.mark.parametrize(
    ("window", "now", "opens"),
    [
        ("09:00-17:00", "08:59:59", "09:00"),
        ("09:00-17:00", "09:00", None),
        ("9:00 - 17:00", "16:59:59", None),
        ("09:00-17:00", "17:00", "09:00 tomorrow"),
        ("22:00-06:00", "21:30", "22:00"),
        ("22:00-06:00", "22:00", None),
        ("22:00-06:00", "00:00", None),
        ("22:00-06:00", "05:59:59", None),
        ("22:00-06:00", "06:00", "22:00"),
        ("22:00-24:00", "23:59:59", None),
        ("22:00-24:00", "00:00", "22:00"),
        ("00:00-24:00", "00:00", None),
        ("00:00-24:00", "23:59:59", None),
        ("00:00-00:01", "00:00:59", None),
        ("00:00-00:01", "00:01", "00:00 tomorrow"),
    ],
)
def test_a_window_of_the_day_may_go_over_midnight(window: str, now: str, opens: str | None) -> None:
    found = wait(parse(window), [node()], at(now))
    if opens is None:
        assert found is None
        return
    clock, _, tomorrow = opens.partition(" ")
    assert found is not None and found.until_s == at(clock, day=3 if tomorrow else 2)
    # Then it may.
    assert wait(parse(window), [node()], found.until_s) is None


def test_it_says_when_its_window_opens() -> None:
    assert wait(parse("22:00-06:00"), [], at("07:15")) == Wait(
        "its window 22:00-06:00 UTC opens at 2026-03-02 22:00 UTC", at("22:00")
    )


@pytest.mark.parametrize(
    ("busy", "why"),
    [
        (0.0, ""),
        (0.29, ""),
        (0.3, "node-b is 30% busy with serving, and is to be below 30%"),
        (1.7, "node-b is 170% busy with serving, and is to be below 30%"),
        (None, "node-b has not said yet how busy it is"),
        (math.nan, "node-b is nan% busy with serving, and is to be below 30%"),
    ],
)
def test_every_asked_node_has_to_be_idle(busy: float | None, why: str) -> None:
    found = wait(parse(idle_below=0.3), [node("node-a", 0.0), node("node-b", busy)], at("12:00"))
    assert found == (Wait(why) if why else None)


@pytest.mark.parametrize(
    ("costs", "why"),
    [
        (0.0, ""),
        (0.39, ""),
        (0.4, "node-b costs 0.4 USD an hour, and is to cost less than 0.4"),
        (2.5, "node-b costs 2.5 USD an hour, and is to cost less than 0.4"),
        (None, "nobody has said what node-b costs (nearmesh node price node-b USD_PER_HOUR does)"),
        (-1.0, "nobody has said what node-b costs (nearmesh node price node-b USD_PER_HOUR does)"),
    ],
)
def test_every_asked_node_has_to_be_cheap(costs: float | None, why: str) -> None:
    found = wait(parse(usd_per_hour_below=0.4), [node("node-a", costs=0.1), node("node-b", costs=costs)], at("12:00"))
    assert found == (Wait(why) if why else None)


def test_all_conditions_have_to_hold_and_all_that_do_not_are_named() -> None:
    schedule = parse("22:00-06:00", 0.5, 0.4)
    assert wait(schedule, [node(busy=0.1, costs=0.1)], at("23:00")) is None
    found = wait(schedule, [node(busy=0.9, costs=0.5)], at("21:00"))
    assert found is not None and found.until_s == at("22:00")
    assert found.why.split("; ") == [
        "its window 22:00-06:00 UTC opens at 2026-03-02 22:00 UTC",
        "node-a is 90% busy with serving, and is to be below 50%",
        "node-a costs 0.5 USD an hour, and is to cost less than 0.4",
    ]
    # Nobody knows when a busy node will be idle.
    assert wait(schedule, [node(busy=0.9, costs=0.1)], at("23:00")) == Wait(
        "node-a is 90% busy with serving, and is to be below 50%"
    )


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"window": "at night"}, "window 'at night' is not HH:MM-HH:MM in UTC, such as 22:00-06:00"),
        ({"window": "22:00"}, "window '22:00' is not"),
        ({"window": "22:00-06:00 CET"}, "window '22:00-06:00 CET' is not"),
        ({"window": "-1:00-06:00"}, "window '-1:00-06:00' is not"),
        ({"window": "x" * 10_000}, "window 'xxxx"),
        ({"window": "25:00-06:00"}, "has a time that no clock shows: 25:00"),
        ({"window": "22:00-24:01"}, "has a time that no clock shows: 24:01"),
        ({"window": "22:60-06:00"}, "has a time that no clock shows: 22:60"),
        ({"window": "06:00-6:00"}, "ends when it begins"),
        ({"window": "24:00-06:00"}, "begins at 24:00; say 00:00"),
        ({"idle_below": -0.1}, "idle below -0.1 means nothing"),
        ({"idle_below": 30}, "idle below 30 means nothing: it is a part of a node, such as 0.3"),
        ({"idle_below": math.nan}, "idle below nan means nothing"),
        ({"usd_per_hour_below": -1}, "a price below -1 USD an hour means nothing"),
        ({"usd_per_hour_below": math.inf}, "a price below inf USD an hour means nothing"),
        ({"usd_per_hour_below": math.nan}, "a price below nan USD an hour means nothing"),
    ],
)
def test_what_means_nothing_is_refused_with_the_value(asked: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(**asked)  # type: ignore[arg-type]
    assert says in refused.value.message
    assert len(refused.value.message) < 200
