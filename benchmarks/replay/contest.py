"""Who takes part, and one day for all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.replay.figures import Outcome, Verdict, fault_verdicts, outcome, verdicts
from benchmarks.replay.optimum import Optimum, optimum
from benchmarks.replay.ours import Nearmesh
from benchmarks.replay.policy import Known, Policy
from benchmarks.replay.rivals import (
    Cheapest,
    InverseSquare,
    LeastRequest,
    Nearest,
    PeakEwma,
    RoundRobin,
    SkyServe,
)
from benchmarks.replay.simulation import Played, play
from benchmarks.replay.slices import Slice, build, ill
from benchmarks.replay.world import Fault, World

# Within reach is a node whose round trip and 99th percentile of service leave this share of the deadline.
SPARE = 0.1
# Which nodes are ill.
ILL_SEED = 1
Maker = Callable[[Known], Policy]
# A day, and what ails it.
Task = tuple[Slice, Fault | None]


@dataclass(frozen=True, slots=True)
class Day:
    """What all made of one day."""

    name: str
    best: Optimum
    ours: tuple[Outcome, ...]
    rivals: tuple[Outcome, ...]
    # Our own rule without a plan, which nobody offers: it shows what the plan is worth.
    unplanned: Outcome
    verdicts: tuple[Verdict, ...]
    # Processor time that the first of ours took, seconds.
    played_s: float


def play_slice(task: Task) -> dict[str, Any]:
    """One day, as it stands in the results. In a process of its own: everything that it needs is in the task."""
    day, fault = task
    world = build(day)
    found = healthy(world) if fault is None else ill_day(ill(world, fault, ILL_SEED))
    return {**asdict(found), "what": day.what, "ill": fault is not None}


def rivals() -> list[Maker]:
    """Each as published; those that know no distance also within reach of the deadline."""
    blind = (RoundRobin, LeastRequest, PeakEwma, SkyServe, InverseSquare)
    return [Nearest, Cheapest, *blind, *(partial(_within_reach, kind) for kind in blind)]


def healthy(world: World) -> Day:
    """A day without faults."""
    best = optimum(world)
    started_s = time.process_time()
    ours = outcome(world, _played(world, Nearmesh), best)
    played_s = time.process_time() - started_s
    others = _rivals(world, best)
    return Day(world.name, best, (ours,), others, _unplanned(world, best), tuple(verdicts(ours, others)), played_s)


def ill_day(world: World) -> Day:
    """A day with ill nodes. Ours plays it under both objectives that mind the time."""
    best = optimum(world)
    started_s = time.process_time()
    cheap = outcome(world, _played(world, Nearmesh), best)
    played_s = time.process_time() - started_s
    near = outcome(world, _played(world, partial(Nearmesh, objective="nearest")), best)
    others = _rivals(world, best)
    held = tuple(fault_verdicts(cheap, near, others))
    return Day(world.name, best, (cheap, near), others, _unplanned(world, best), held, played_s)


def _rivals(world: World, best: Optimum) -> tuple[Outcome, ...]:
    return tuple(outcome(world, _played(world, make), best) for make in rivals())


def _unplanned(world: World, best: Optimum) -> Outcome:
    return outcome(world, _played(world, partial(_within_reach, Cheapest)), best)


def _within_reach(kind: type, known: Known) -> Policy:
    reach_ms = known.deadline_ms * (1 - SPARE) - known.service_ms[1]
    found: Policy = kind(known, reach_ms)
    found.name = f"{found.name}, within reach"
    return found


def _played(world: World, make: Maker) -> Played:
    # Whoever plays draws the same numbers.
    random.seed(1)
    return play(world, make)
