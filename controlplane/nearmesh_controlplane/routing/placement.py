"""Places everybody's demand at once: a transportation problem.

A row is what one locality asks of one model under one objective; a column is a node that could answer. Minimise the sum
of demand x cost so that every row is placed and no node gets more than it may have. Usually no node is short: then each
row's cheapest column is the optimum, and nothing needs to be solved. Otherwise it is a linear program, solved by HiGHS
(Huangfu and Hall, Mathematical Programming Computation 10, 2018). Of a large one a few columns for each row are enough:
those that cost least by the last prices or, before there are any, some drawn from an approximate solution. More are
added while their reduced cost says that they would help (column generation; Dantzig and Wolfe, 1960), until the bound
that the prices give is within GAP of what was found.

Whoever is placed stays for a while: what is where it was costs less by a share, so that a small difference moves
nobody. And as long as the prices of last time prove that staying is near the optimum, nothing is solved.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import highspy
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

log = logging.getLogger(__name__)

# Up to so many columns, all are taken: the result is exact.
ALL_COLUMNS = 4000
# Columns drawn for each row of a larger problem, and how far from the optimum the result may be, as a share of it.
DRAWN = 4
# Columns taken for each row where the last prices are known: those that cost least by them.
LIKELY = 6
GAP = 1e-3
MAX_ROUNDS = 12
# All programs of one placement together. Whoever decides answers nobody meanwhile, nor hears that nodes are there; a
# full mesh takes a fifth of it.
SOLVE_WITHIN_S = 1.0
# Who stays may take so much more than a node's capacity: demand is never the same twice, and the bound is no cliff.
STAYING_SLACK = 0.03
# Where nothing was solved, who stays may do so much worse by it, as a share of the cost of having no room: as much as
# to be late for half, but not to ask a node that is lost.
STAYS_WITHIN = 0.05
# The approximate solution: rounds, and how sharply rows choose in the first and in the last one, as a share of the
# usual cost. It aims for a little less than the capacity, so that what is drawn from it fits.
APPROXIMATIONS = 60
_BLUR = (0.5, 0.05)
_FIT = 0.97
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is to be placed. Arrays over rows and nodes."""

    # Of a request, in any unit; infinite where a node cannot answer. Each row has at least one finite column.
    cost: Array
    # What a request costs that stays where it is; at most `cost`.
    stay_cost: Array
    # Shares of the row that are there now; each row's add up to 1 at most.
    held: Array
    # Requests per second by row; may be 0.
    demand: Array
    # What one request per second takes of a node.
    load: Array
    # What may be taken of each node.
    capacity: Array
    # The cost of a request for which no node has room; what costs more than this is no use either.
    overload_cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Who answers whom."""

    # Shares of each row, adding up to 1.
    shares: Array
    # What a little more of each node would be worth to others: the price of standing in their way.
    scarcity: Array
    # Requests per second that no node has room for; they are placed all the same, evenly.
    unplaced_per_s: float = 0.0
    # Linear programs solved.
    rounds: int = 0
    # There was no optimum, or no time to find it: a placement that will do.
    given_up: bool = False


def place(problem: Problem, scarcity: Array | None = None) -> Placement:
    """The cheapest placement; `scarcity` is what the last one said, if there was one."""
    free = np.zeros_like(problem.capacity)
    shares = cheapest(problem.cost, problem.stay_cost, problem.held)
    if np.all(_taken(problem, shares) <= problem.capacity + 1e-9):
        return Placement(shares=shares, scarcity=free)
    if scarcity is not None and _may_stay(problem, scarcity):
        shares = np.where(problem.demand[:, None] > 0, problem.held, _priced(problem, scarcity))
        return Placement(shares=shares, scarcity=scarcity)
    return _solve(problem, scarcity)


def _may_stay(problem: Problem, scarcity: Array) -> bool:
    """Whether what is held is within GAP of a lower bound of the optimum: the value of the dual at those prices."""
    asking = problem.demand > 0
    demand, held = problem.demand[asking], problem.held[asking]
    if np.any(np.abs(held.sum(axis=1) - 1) > 1e-6):
        return False
    if np.any(_taken(problem, problem.held) > problem.capacity * (1 + STAYING_SLACK)):
        return False
    stay = np.where(held > 0, problem.stay_cost[asking], np.inf)
    value = float(demand @ (np.where(held > 0, stay, 0.0) * held).sum(axis=1))
    priced = np.minimum(problem.cost[asking], stay) + problem.load[asking] * scarcity
    bound = float(demand @ priced.min(axis=1) - problem.capacity @ scarcity)
    return value - bound <= GAP * abs(value)


def cheapest(cost: Array, stay_cost: Array, held: Array) -> Array:
    """Each row for itself: what is held stays where that is cheapest, the rest goes to the cheapest column."""
    best = np.argmin(cost, axis=1)
    rows = np.arange(len(best))
    shares = np.where(stay_cost <= cost[rows, best][:, None], held, 0.0)
    shares[rows, best] += np.maximum(0.0, 1 - shares.sum(axis=1))
    return shares


def _priced(problem: Problem, scarcity: Array) -> Array:
    """The same at those prices of capacity."""
    extra = problem.load * scarcity
    return cheapest(problem.cost + extra, problem.stay_cost + extra, problem.held)


def _taken(problem: Problem, shares: Array) -> Array:
    found: Array = (problem.demand[:, None] * problem.load * shares).sum(axis=0)
    return found


def _solve(problem: Problem, scarcity: Array | None) -> Placement:
    asking = np.flatnonzero(problem.demand > 0)
    program, why = _Program(problem, asking, scarcity), ""
    try:
        while not (found := program.run()).near and program.rounds < MAX_ROUNDS:
            program.add(*found.missing)
    except _NoOptimum as error:
        why = str(error)
        if program.last is None:
            # Routes that cost a few percent more are better than none, which is what every client would have.
            log.error("the placement was not solved, and is an approximation: %s", why)
            shares, none = _unsolved(problem, asking, program), np.zeros_like(problem.capacity)
            return Placement(shares=shares, scarcity=none, rounds=program.rounds, given_up=True)
        # Over fewer columns it was: a little dearer than the best, and it fits.
        log.warning("the placement is the best over some of the columns alone: %s", why)
        found = program.last
    # Rows without demand follow the same prices, at no cost to anyone.
    shares = _priced(problem, found.scarcity)
    shares[asking] = found.shares
    return Placement(
        shares=shares,
        scarcity=found.scarcity,
        unplaced_per_s=found.unplaced_per_s,
        rounds=program.rounds,
        given_up=bool(why),
    )


def _unsolved(problem: Problem, asking: Ints, program: _Program) -> Array:
    """Without an optimum: who can stay where it is stays, and the others are placed roughly."""
    shares = cheapest(problem.cost, problem.stay_cost, problem.held)
    shares[asking] = program.rough()
    full = _taken(problem, problem.held) > problem.capacity * (1 + STAYING_SLACK)
    held = problem.held > 0
    stay = (np.where(held, problem.stay_cost, 0.0) * problem.held).sum(axis=1)
    go = (np.where(shares > 0, problem.cost, 0.0) * shares).sum(axis=1)
    whole = np.abs(problem.held.sum(axis=1) - 1) <= 1e-6
    stays = whole & (stay <= go + STAYS_WITHIN * problem.overload_cost) & ~(held & full).any(axis=1)
    return np.where(stays[:, None], problem.held, shares)


class _NoOptimum(Exception):
    """The solver gave up: its time was over, or its numbers were not what it can bear."""


@dataclass(frozen=True, slots=True)
class _Found:
    """One solution of the program over the columns that are in it."""

    shares: Array
    scarcity: Array
    unplaced_per_s: float
    # Whether no column that is left out could make it better by more than GAP, and those that would help most.
    near: bool
    missing: tuple[Ints, Ints]


class _Program:
    """The linear program over some of the columns, kept so that more can be added to it.

    Variables: requests per second of a row that have no room, that stay where they are (no more than are there now),
    and that are sent to a node. Constraints: each row's demand, each node's capacity.
    """

    def __init__(self, problem: Problem, asking: Ints, scarcity: Array | None) -> None:
        self._demand = problem.demand[asking]
        self._load = problem.load[asking]
        self._cost = np.where(problem.cost[asking] < problem.overload_cost, problem.cost[asking], np.inf)
        self._true_cost = problem.cost[asking]
        self._capacity = problem.capacity
        self._overload_cost = problem.overload_cost
        self.rounds = 0
        # The solution over the columns that there were before.
        self.last: _Found | None = None
        self._roughly: Array | None = None
        count, nodes = self._cost.shape
        self._in = np.zeros((count, nodes), dtype=bool)
        # Of every variable; those without room have node -1.
        self._rows, self._nodes = np.arange(count), np.full(count, -1)
        self._solver = _quiet_solver()
        none = np.zeros(0, dtype=np.int32)
        low = np.concatenate([self._demand, np.full(nodes, -highspy.kHighsInf)])
        high = np.concatenate([self._demand, self._capacity])
        self._solver.addRows(count + nodes, low, high, 0, np.zeros(count + nodes, dtype=np.int32), none, np.zeros(0))
        self._add(np.full(count, self._overload_cost), np.full(count, highspy.kHighsInf), self._rows, self._nodes)
        held = problem.held[asking]
        staying = _where((held > 0) & (problem.stay_cost[asking] < self._overload_cost))
        self._record(*staying)
        self._add(problem.stay_cost[asking][staying], (held * self._demand[:, None])[staying], *staying)
        self.add(*self._first(scarcity))

    def add(self, rows: Ints, nodes: Ints) -> None:
        """Lets rows be sent to nodes."""
        self._in[rows, nodes] = True
        self._record(rows, nodes)
        self._add(self._cost[rows, nodes], np.full(len(rows), highspy.kHighsInf), rows, nodes)

    def run(self) -> _Found:
        """Solves it as it is."""
        self._solver.run()
        status = self._solver.getModelStatus()
        if status != highspy.HighsModelStatus.kOptimal:
            raise _NoOptimum(self._solver.modelStatusToString(status))
        # The columns that come later leave this solution possible, which is where the primal simplex starts from.
        self._solver.setOptionValue("simplex_strategy", 4)
        self.rounds += 1
        solution = self._solver.getSolution()
        amounts, duals = np.maximum(np.asarray(solution.col_value), 0.0), np.asarray(solution.row_dual)
        row_price, scarcity = duals[: len(self._demand)], np.maximum(0.0, -duals[len(self._demand) :])
        near, missing = self._missing(row_price, scarcity)
        shares, unplaced_per_s = self._shares(amounts)
        self.last = _Found(shares, scarcity, unplaced_per_s, near, missing)
        return self.last

    def rough(self) -> Array:
        """Shares of an approximate solution."""
        if self._roughly is None:
            self._roughly = _approximate(self._true_cost, self._load, self._demand, self._capacity)
        return self._roughly

    def _first(self, scarcity: Array | None) -> tuple[Ints, Ints]:
        possible = np.isfinite(self._cost)
        if possible.sum() <= ALL_COLUMNS:
            return _where(possible)
        if scarcity is not None and scarcity.any():
            # Prices are hardly ever the same twice, and hardly ever far from the last ones.
            return _where(_lowest(self._cost + self._load * scarcity, LIKELY) & possible)
        return _where(_drawn(self.rough()) & possible)

    def _missing(self, row_price: Array, scarcity: Array) -> tuple[bool, tuple[Ints, Ints]]:
        """Each row's column of the lowest reduced cost, where that is below 0, and whether they matter."""
        reduced = self._cost + self._load * scarcity - row_price[:, None]
        reduced[self._in] = np.inf
        best = np.argmin(reduced, axis=1)
        gain = np.minimum(reduced[np.arange(len(best)), best], 0.0)
        rows = np.flatnonzero(gain < 0)
        value = self._solver.getInfo().objective_function_value
        return bool(-(gain @ self._demand) <= GAP * abs(value)), (rows, best[rows])

    def _shares(self, amounts: Array) -> tuple[Array, float]:
        flow = np.zeros_like(self._load)
        placed = self._nodes >= 0
        np.add.at(flow, (self._rows[placed], self._nodes[placed]), amounts[placed])
        unplaced = amounts[: len(self._demand)]
        flow += unplaced[:, None] * self._evenly()
        return flow / flow.sum(axis=1, keepdims=True), float(unplaced.sum())

    def _evenly(self) -> Array:
        """Shares of what no node has room for: by what each could do, where that is of any use."""
        able = np.where(np.isfinite(self._cost), self._capacity / np.maximum(self._load, 1e-12), 0.0)
        none = able.sum(axis=1) <= 0
        able[none] = np.isfinite(self._true_cost[none])
        found: Array = able / able.sum(axis=1, keepdims=True)
        return found

    def _record(self, rows: Ints, nodes: Ints) -> None:
        self._rows, self._nodes = np.concatenate([self._rows, rows]), np.concatenate([self._nodes, nodes])

    def _add(self, cost: Array, upper: Array, rows: Ints, nodes: Ints) -> None:
        """Variables for the solver: each in its row's demand and, where it has a node, in that one's capacity."""
        bounded = nodes >= 0
        starts = np.concatenate([[0], np.cumsum(1 + bounded)])[:-1]
        index, value = np.empty(len(rows) + bounded.sum(), dtype=np.int32), np.ones(len(rows) + bounded.sum())
        index[starts] = rows
        at = starts[bounded] + 1
        index[at], value[at] = len(self._demand) + nodes[bounded], self._load[rows[bounded], nodes[bounded]]
        low = np.zeros(len(rows))
        self._solver.addCols(len(rows), cost, low, upper, len(index), starts.astype(np.int32), index, value)


def _where(mask: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    rows, nodes = np.nonzero(mask)
    return rows, nodes


def _quiet_solver() -> highspy.Highs:
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    # The control plane has others to answer meanwhile.
    solver.setOptionValue("threads", 1)
    # HiGHS counts the time of all runs of one instance.
    solver.setOptionValue("time_limit", SOLVE_WITHIN_S)
    return solver


def _approximate(cost: Array, load: Array, demand: Array, capacity: Array) -> Array:
    """Shares that cost a few percent more than the best and nearly fit: rows choose by price, nodes set theirs.

    Entropic smoothing of the linear program with a blur that shrinks: rows spread over columns by exp(-price / blur),
    and each node's price grows by the logarithm of how much more than its capacity it gets.
    """
    usual, usual_load = float(np.median(cost.min(axis=1))), float(np.median(load))
    usual = max(usual, 1e-12)
    scarcity = np.zeros_like(capacity)
    weights = np.zeros_like(cost)
    for blur in usual * np.geomspace(*_BLUR, APPROXIMATIONS):
        price = cost + load * scarcity
        weights = np.exp(-(price - price.min(axis=1, keepdims=True)) / blur)
        weights /= weights.sum(axis=1, keepdims=True)
        taken = (weights * demand[:, None] * load).sum(axis=0)
        excess = np.log(np.maximum(taken, 1e-9) / np.maximum(_FIT * capacity, 1e-9))
        scarcity = np.maximum(0.0, scarcity + blur / usual_load * np.maximum(excess, -7.0))
    return weights


def _lowest(cost: Array, count: int) -> npt.NDArray[np.bool_]:
    """The columns of the lowest cost, so many of each row."""
    found = np.zeros(cost.shape, dtype=bool)
    count = min(count, cost.shape[1])
    np.put_along_axis(found, np.argpartition(cost, count - 1, axis=1)[:, :count], True, axis=1)
    return found


def _drawn(weights: Array) -> npt.NDArray[np.bool_]:
    """DRAWN columns of each row in proportion to its weights, so that together the rows' draws use what the weights do.

    Systematic sampling: equally spaced points on each row's cumulative weights, shifted from row to row by the golden
    ratio. No chance is in it: the same facts give the same routes.
    """
    rows = np.arange(len(weights))
    cumulative = np.cumsum(weights, axis=1)
    cumulative /= cumulative[:, -1:]
    found = np.zeros(weights.shape, dtype=bool)
    found[rows, np.argmax(weights, axis=1)] = True
    for draw in range(DRAWN):
        point = (draw + rows * _GOLDEN % 1) / DRAWN
        found[rows, np.minimum((cumulative < point[:, None]).sum(axis=1), weights.shape[1] - 1)] = True
    return found
