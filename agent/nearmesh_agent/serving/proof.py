"""What a freshly loaded engine has to show before it serves: right answers, and how many rows pay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nearmesh.errors import EngineFailure, InvalidInput, WarmupFailed
from nearmesh.package import Package
from nearmesh.report import Report
from nearmesh_agent.engines.base import Array, Engine
from nearmesh_agent.serving import warmup
from nearmesh_agent.serving.batch import BatchLayout
from nearmesh_agent.serving.call import effort_clock
from nearmesh_agent.serving.scheduler import Clock
from nearmesh_agent.serving.times import ServiceTimes

# Calls of one size, and seconds for all sizes together: few and short, since the first request may be waiting. Serving
# goes on measuring.
_CALLS, _BUDGET_S = 3, 0.1
# Of what a made variant was off by where it was tried, how many times as much it may be off here: another processor
# rounds otherwise, and a value near the middle of two steps of 8 bits falls to the other side.
SLACK = 2.0


def prove(engine: Engine, folder: Path, package: Package) -> dict[str, Array]:
    """Every warm-up gives its expected outputs; returns the smallest inputs. Raises WarmupFailed, PackageError.

    A variant that was made may differ from them by what its report allows.
    """
    allowed = allowance(Report.read(folder), engine.variant)
    smallest: dict[str, Array] | None = None
    for case, given, expected in warmup.cases(folder, package):
        try:
            warmup.check(case, engine.infer(given), expected, allowed)
        except (EngineFailure, InvalidInput) as error:
            raise WarmupFailed(f"{case.file}: {error.message}") from None
        if smallest is None or _bytes(given) < _bytes(smallest):
            smallest = given
    # A package without warm-ups exists in tests alone.
    return smallest or {}


def allowance(report: Report | None, variant: str) -> dict[str, float]:
    """By output, how much further off than the package's tolerance the warm-ups' answers of a variant may be.

    `variant` is an engine's word for it: of a pipeline "STEP:NAME,STEP:NAME". Each step's variant was tried with the
    others as given, so what they cost adds up.
    """
    found: dict[str, float] = {}
    for part in variant.split(",") if report else ():
        step, _, name = part.rpartition(":")
        said = report.of(name, step) if report else None
        for output, difference in (said.warmup_difference if said and said.kind else {}).items():
            found[output] = found.get(output, 0.0) + SLACK * difference
    return found


def measure(
    engine: Engine, layout: BatchLayout, inputs: Mapping[str, Array], times: ServiceTimes, clock: Clock
) -> None:
    """Times calls of each size that `times` tells apart, as far as a tenth of a second goes; the size of one always."""
    if not inputs:
        return
    until = clock() + _BUDGET_S
    rows = layout.rows(inputs)
    for size in times.sizes:
        copies = max(1, size // rows)
        took = copies / max(1, times.best) * times.mean_s(times.best)
        if size > 1 and (copies * rows != size or clock() + took >= until):
            continue
        times.add(copies * rows, *_fastest(engine, layout.join([inputs] * copies), clock, until))


def _fastest(engine: Engine, inputs: Mapping[str, Array], clock: Clock, until: float) -> tuple[float, float]:
    """Seconds, and effort: the least of a few calls, since the first allocates and plans, and others get held up."""
    effort = effort_clock(engine, clock)
    found_s = effort_s = float("inf")
    for _ in range(_CALLS):
        started, began = clock(), effort()
        engine.infer(inputs)
        found_s, effort_s = min(found_s, clock() - started), min(effort_s, effort() - began)
        if clock() >= until:
            break
    return found_s, effort_s


def _bytes(inputs: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in inputs.values())
