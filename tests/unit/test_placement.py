"""The transportation problem: against a plain linear program, and what is kept when little changes."""

from __future__ import annotations

import numpy as np
import pytest
from nearmesh_controlplane.routing import placement
from nearmesh_controlplane.routing.placement import GAP, Placement, Problem, place

STAYING = 0.94


def problem(rows: int, nodes: int, *, room: float, seed: int = 1, structured: bool = False) -> Problem:
    """Half of the pairs are late, which costs a hundred times as much; capacity is `room` times what is asked for."""
    random = np.random.default_rng(seed)
    price = random.uniform(0.5, 2.0, nodes)
    part = random.uniform(0.97, 1.03, (rows, 1)) if structured else random.uniform(0.9, 1.1, (rows, nodes))
    late = np.where(random.random((rows, nodes)) < 0.5, 0.0, random.uniform(50.0, 100.0, (rows, nodes)))
    cost = price * part + late
    demand = random.uniform(0.0, 2.0, rows) * (random.random(rows) < 0.8)
    load = random.uniform(0.01, 0.02, (rows, 1)) * random.uniform(0.9, 1.1, (rows, nodes))
    return Problem(
        cost=cost,
        stay_cost=STAYING * cost,
        held=np.zeros((rows, nodes)),
        demand=demand,
        load=load,
        capacity=np.full(nodes, room * demand.sum() * 0.015 / nodes),
        overload_cost=1000.0,
    )


def value(p: Problem, found: Placement) -> float:
    return float((p.demand[:, None] * p.cost * found.shares).sum())


def taken(p: Problem, found: Placement) -> np.ndarray:
    return (p.demand[:, None] * p.load * found.shares).sum(axis=0)


def with_held(p: Problem, held: np.ndarray, **changes: np.ndarray) -> Problem:
    fields = {name: getattr(p, name) for name in Problem.__slots__} | {"held": held} | changes
    fields["stay_cost"] = STAYING * fields["cost"]
    return Problem(**fields)


def test_with_room_for_all_each_row_has_its_cheapest_and_nothing_is_solved() -> None:
    p = problem(50, 10, room=1000.0)
    found = place(p)
    assert found.rounds == 0 and not found.scarcity.any()
    assert (np.argmax(found.shares, axis=1) == np.argmin(p.cost, axis=1)).all()
    assert found.shares.sum(axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("room", [3.0, 1.5, 1.1])
def test_a_few_columns_are_as_good_as_all(monkeypatch: pytest.MonkeyPatch, room: float, structured: bool) -> None:
    p = problem(120, 40, room=room, structured=structured)
    exact = place(p)
    assert exact.rounds >= 1
    monkeypatch.setattr(placement, "ALL_COLUMNS", 0)
    found = place(p)
    assert value(p, found) == pytest.approx(value(p, exact), rel=2 * GAP)
    for each in (exact, found):
        assert (taken(p, each) <= p.capacity * (1 + 1e-6)).all()
        assert each.shares.sum(axis=1) == pytest.approx(1.0)
        assert each.unplaced_per_s == pytest.approx(0.0, abs=1e-6)


def test_the_cheapest_site_goes_to_those_for_whom_the_next_one_costs_more() -> None:
    p = Problem(
        cost=np.array([[1.0, 2.0], [1.0, 5.0]]),
        stay_cost=np.array([[1.0, 2.0], [1.0, 5.0]]),
        held=np.zeros((2, 2)),
        demand=np.array([10.0, 10.0]),
        load=np.full((2, 2), 0.1),
        capacity=np.array([1.0, 10.0]),
        overload_cost=1000.0,
    )
    found = place(p)
    assert found.shares == pytest.approx(np.array([[0.0, 1.0], [1.0, 0.0]]))
    # A little more of the first node would spare someone one dollar for a tenth of it.
    assert found.scarcity == pytest.approx([10.0, 0.0])


def test_what_nobody_has_room_for_is_placed_evenly_and_counted() -> None:
    p = Problem(
        cost=np.array([[1.0, 2.0]]),
        stay_cost=np.array([[1.0, 2.0]]),
        held=np.zeros((1, 2)),
        demand=np.array([40.0]),
        load=np.full((1, 2), 0.1),
        capacity=np.array([1.0, 1.0]),
        overload_cost=1000.0,
    )
    found = place(p)
    assert found.unplaced_per_s == pytest.approx(20.0)
    assert found.shares == pytest.approx(np.array([[0.5, 0.5]]))


def test_a_row_without_demand_follows_the_prices_of_those_with_it() -> None:
    """Or a locality that wakes up would start where there is no room."""
    p = Problem(
        cost=np.array([[1.0, 1.5], [1.0, 5.0]]),
        stay_cost=np.array([[1.0, 1.5], [1.0, 5.0]]),
        held=np.zeros((2, 2)),
        demand=np.array([0.0, 20.0]),
        load=np.full((2, 2), 0.1),
        capacity=np.array([1.0, 10.0]),
        overload_cost=1000.0,
    )
    assert place(p).shares[0] == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("room", [1000.0, 1.3])
def test_a_price_that_moves_by_five_percent_moves_nobody(room: float) -> None:
    p = problem(60, 12, room=room)
    first = place(p)
    prices = np.random.default_rng(3).uniform(0.975, 1.025, 12)
    again = place(with_held(p, first.shares, cost=p.cost * prices), first.scarcity)
    assert np.abs(again.shares - first.shares).max() == pytest.approx(0.0, abs=1e-6)


def test_a_price_that_halves_moves_those_whom_it_suits() -> None:
    p = problem(60, 12, room=1000.0)
    first = place(p)
    cost = p.cost.copy()
    cost[:, 3] /= 2
    again = place(with_held(p, first.shares, cost=cost))
    moved = np.flatnonzero(again.shares[:, 3] - first.shares[:, 3] > 0.5)
    clearly = np.flatnonzero((cost[:, 3] < STAYING * p.cost.min(axis=1)) & (first.shares[:, 3] < 0.5))
    assert len(moved) and list(moved) == list(clearly)


def test_when_nothing_has_changed_nothing_is_solved() -> None:
    p = problem(120, 40, room=1.2)
    first = place(p)
    again = place(with_held(p, first.shares, demand=p.demand * 1.01), first.scarcity)
    assert first.rounds > 0 and again.rounds == 0
    assert again.shares == pytest.approx(first.shares)


def test_when_a_node_has_shrunk_it_is_solved_again() -> None:
    p = problem(120, 40, room=1.5)
    first = place(p)
    capacity = p.capacity.copy()
    capacity[int(np.argmax(taken(p, first)))] /= 2
    again = place(with_held(p, first.shares, capacity=capacity), first.scarcity)
    assert again.rounds > 0
    assert (taken(p, again) <= capacity * (1 + 1e-6)).all()


def test_the_same_facts_give_the_same_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "ALL_COLUMNS", 0)
    p = problem(80, 30, room=1.2)
    assert (place(p).shares == place(p).shares).all()


def test_what_the_solver_cannot_do_is_placed_roughly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    p = problem(30, 8, room=1.2)
    forbidden = np.arange(8) >= 6
    p = with_held(p, p.held, cost=np.where(forbidden, np.inf, p.cost))

    class NeverDone(placement.highspy.Highs):  # type: ignore[misc]
        def getModelStatus(self) -> placement.highspy.HighsModelStatus:
            return placement.highspy.HighsModelStatus.kUnknown

    monkeypatch.setattr(placement.highspy, "Highs", NeverDone)
    found = place(p)
    assert found.shares.sum(axis=1) == pytest.approx(1.0)
    assert not found.shares[:, forbidden].any()
    assert "is an approximation: Unknown" in caplog.text


# When there is no time.


def stopped_after(runs: int) -> type:
    """A solver whose time is over after so many runs."""

    class Stopped(placement.highspy.Highs):  # type: ignore[misc]
        done = 0

        def run(self) -> placement.highspy.HighsStatus:
            self.done += 1
            return super().run()

        def getModelStatus(self) -> placement.highspy.HighsModelStatus:
            over = placement.highspy.HighsModelStatus.kTimeLimit
            return super().getModelStatus() if self.done <= runs else over

    return Stopped


def test_the_solver_stops_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placement, "SOLVE_WITHIN_S", 1e-9)
    p = problem(300, 60, room=1.1)
    found = place(p)
    assert found.given_up and "Time limit reached" in caplog.text
    assert found.shares.sum(axis=1) == pytest.approx(1.0)
    assert (taken(p, found) <= p.capacity * 1.1).all()


def test_what_was_solved_before_the_time_was_over_is_good_enough(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placement, "ALL_COLUMNS", 0)
    monkeypatch.setattr(placement, "GAP", 0.0)
    p = problem(120, 40, room=1.1)
    best = place(p)
    assert best.rounds > 1, "or there is nothing to stop"
    monkeypatch.setattr(placement.highspy, "Highs", stopped_after(1))
    found = place(p)
    assert found.given_up and not best.given_up and "the best over some of the columns" in caplog.text
    assert (taken(p, found) <= p.capacity * (1 + 1e-6)).all() and found.shares.sum(axis=1) == pytest.approx(1.0)
    assert value(p, best) < value(p, found) < 1.05 * value(p, best)


def test_without_any_solution_who_can_stay_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(60, 12, room=1.3)
    held = place(p).shares
    monkeypatch.setattr(placement.highspy, "Highs", stopped_after(0))
    # One node is lost, and one has shrunk.
    lost, shrunk = np.argsort(taken(p, Placement(shares=held, scarcity=np.zeros(12))))[-2:]
    cost, capacity = p.cost.copy(), p.capacity.copy()
    cost[:, lost] += 500.0
    capacity[shrunk] /= 2
    found = place(with_held(p, held, cost=cost, capacity=capacity))
    moved = (held[:, [lost, shrunk]] > 0).any(axis=1)
    assert found.given_up and 0 < moved.sum() < len(moved)
    assert found.shares[~moved] == pytest.approx(held[~moved])
    assert found.shares[:, lost].max() < 0.01 and taken(p, found)[shrunk] < 1.2 * capacity[shrunk]


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(("cost", "room"), [(1.0, 0.9), (1.2, 1.0), (3.0, 0.8)])
def test_from_the_last_prices_a_few_columns_are_enough(
    monkeypatch: pytest.MonkeyPatch, cost: float, room: float, structured: bool
) -> None:
    """However far things have moved since."""
    before = problem(120, 40, room=1.5, structured=structured)
    known = place(before)
    dearer, less = before.cost.copy(), before.capacity.copy()
    dearer[:, ::3] *= cost
    less[::2] *= room
    now = with_held(before, known.shares, cost=dearer, capacity=less)
    exact = place(now, known.scarcity)

    def never(*_: object) -> None:
        raise AssertionError("an approximation takes longer than all the rest")

    monkeypatch.setattr(placement, "ALL_COLUMNS", 0)
    monkeypatch.setattr(placement, "_approximate", never)
    found = place(now, known.scarcity)

    def paid(of: Placement) -> float:
        stays = np.minimum(of.shares, now.held)
        return float((now.demand[:, None] * (stays * now.stay_cost + (of.shares - stays) * now.cost)).sum())

    assert exact.rounds >= 1 and found.rounds >= 1
    assert paid(found) == pytest.approx(paid(exact), rel=2 * GAP)
    assert (taken(now, found) <= less * (1 + 1e-6)).all()
