"""Which variants of a version serve on this node: those that an operator named, or those that are fastest here.

Where several variants run here, each is opened, proven by the warm-ups, and timed against the best one so far, call by
call in turn, so that what else the machine does meets both. That is done once for a version; when it comes back into
memory, what was found out still holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nearmesh.errors import EngineFailure, InvalidInput, PackageError, WarmupFailed
from nearmesh.package import Package
from nearmesh.report import Report
from nearmesh_agent.engines.base import Array, Engine
from nearmesh_agent.engines.choice import is_worth, why
from nearmesh_agent.engines.factory import OnnxEngines, not_to_be_had
from nearmesh_agent.serving import warmup
from nearmesh_agent.serving.proof import prove

log = logging.getLogger(__name__)

# Rounds of one call each, and seconds for all of one comparison: the first request may be waiting.
_ROUNDS, _BUDGET_S = 5, 0.5

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Choice:
    """By step, the variant; and why."""

    variants: Mapping[str, str]
    why: str


@dataclass(slots=True)
class _Trial:
    """The best engine so far, and what each variant that was tried took."""

    engine: Engine
    variants: dict[str, str]
    # By step and variant: seconds of its fastest call, with the best of all other steps then.
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    # By step, variants that do not do.
    failed: dict[str, list[str]] = field(default_factory=dict)


class BestVariants:
    """An EngineFactory. Thread-safe: two threads may at worst measure the same version."""

    def __init__(
        self, engines: OnnxEngines, pins: Mapping[str, str] | None = None, *, clock: Clock = time.perf_counter
    ) -> None:
        """`pins`: by model, the variant that an operator wants here."""
        self._engines, self._pins, self._clock = engines, pins or {}, clock
        self._chosen: dict[Path, _Choice] = {}

    def __call__(self, folder: Path, package: Package) -> Engine:
        """Raises as `OnnxEngines`, and WarmupFailed if no variant gives what the warm-ups expect."""
        known = self._chosen.get(folder) or self._pinned(folder, package)
        if known is not None:
            engine = self._open(folder, package, known.variants)
        else:
            engine, known = self._find(folder, package)
        self._chosen[folder] = known
        engine.variant_why = known.why
        return engine

    def _open(self, folder: Path, package: Package, variants: Mapping[str, str]) -> Engine:
        started = self._clock()
        engine = replace(self._engines, variants=variants)(folder, package)
        engine.opened_s = self._clock() - started
        return engine

    def _pinned(self, folder: Path, package: Package) -> _Choice | None:
        name = self._pins.get(package.name)
        if name is None:
            return None
        gone = not_to_be_had(folder, package)
        there = [v for v in (*package.made_variants, *package.variants) if v.file not in gone]
        pinned = [variant.step for variant in there if variant.name == name]
        if not pinned:
            names = ", ".join(sorted({variant.name for variant in there}))
            raise PackageError(f"node.toml pins {package.name!r} to {name!r}; it has {names}")
        others = {step: self._engines.options(folder, package, step)[0].name for step in _graphs(package) - {*pinned}}
        return _Choice({**others, **dict.fromkeys(pinned, name)}, "pinned by node.toml")

    def _find(self, folder: Path, package: Package) -> tuple[Engine, _Choice]:
        options = {
            step: [variant.name for variant in self._engines.options(folder, package, step)]
            for step in sorted(_graphs(package))
        }
        if all(len(names) == 1 for names in options.values()):
            variants = {step: names[0] for step, names in options.items()}
            return self._open(folder, package, variants), _Choice(variants, _only(package))
        trial = self._first(folder, package, options)
        try:
            inputs = next(given for _, given, _ in warmup.cases(folder, package))
            for step, names in options.items():
                for name in names:
                    if name != trial.variants[step] and name not in trial.failed.get(step, ()):
                        self._try(trial, folder, package, step, name, inputs)
            return trial.engine, _Choice(trial.variants, _words(trial, Report.read(folder)))
        except BaseException:
            trial.engine.close()
            raise

    def _first(self, folder: Path, package: Package, options: Mapping[str, list[str]]) -> _Trial:
        """The first combination that does; references come first. Raises what the last one's failure was."""
        failed: dict[str, list[str]] = {}
        left = {step: list(names) for step, names in options.items()}
        while True:
            variants = {step: names[0] for step, names in left.items()}
            try:
                return _Trial(self._proven(folder, package, variants), variants, failed=failed)
            except (PackageError, EngineFailure, InvalidInput, WarmupFailed) as error:
                # Which step's variant is to blame is not known: the first that has another one gives way.
                step = next((step for step, names in left.items() if len(names) > 1), None)
                if step is None:
                    raise
                log.warning("model=%s variant=%s does not do: %s", package.name, variants[step], error.message)
                failed.setdefault(step, []).append(left[step].pop(0))

    def _proven(self, folder: Path, package: Package, variants: Mapping[str, str]) -> Engine:
        engine = self._open(folder, package, variants)
        try:
            prove(engine, folder, package)
        except BaseException:
            engine.close()
            raise
        return engine

    def _try(
        self, trial: _Trial, folder: Path, package: Package, step: str, name: str, inputs: Mapping[str, Array]
    ) -> None:
        """Takes the other variant in place of the best one's, if that is worth it."""
        variants = {**trial.variants, step: name}
        try:
            other = self._proven(folder, package, variants)
        except (PackageError, EngineFailure, InvalidInput, WarmupFailed) as error:
            log.warning("model=%s variant=%s does not do: %s", package.name, name, error.message)
            trial.failed.setdefault(step, []).append(name)
            return
        try:
            best_s, other_s = race(trial.engine, other, inputs, self._clock)
        except BaseException:
            other.close()
            raise
        said = trial.seconds.setdefault(step, {})
        said[trial.variants[step]] = min(best_s, said.get(trial.variants[step], best_s))
        said[name] = other_s
        log.info(
            "model=%s variant=%s takes %.4f s, %s %.4f s", package.name, name, other_s, trial.variants[step], best_s
        )
        if is_worth(other_s, best_s):
            trial.engine, other, trial.variants = other, trial.engine, variants
        other.close()


def _graphs(package: Package) -> set[str]:
    """Names of the steps that have variants; "" of a package that is one graph."""
    return {variant.step for variant in package.variants}


def race(one: Engine, other: Engine, inputs: Mapping[str, Array], clock: Clock) -> tuple[float, float]:
    """Seconds of each one's fastest call, of some in turn: whatever else the machine does only slows a call down."""
    until = clock() + _BUDGET_S
    found = {0: float("inf"), 1: float("inf")}
    for _ in range(_ROUNDS):
        for number, engine in enumerate((one, other)):
            started = clock()
            engine.infer(inputs)
            found[number] = min(found[number], clock() - started)
        if clock() >= until:
            break
    return found[0], found[1]


def _only(package: Package) -> str:
    several = len(package.made_variants) + len(package.variants) > len(_graphs(package))
    return "the only one that runs here" if several else ""


def _words(trial: _Trial, report: Report | None) -> str:
    """Of each step that had a choice."""
    found = []
    for step, name in trial.variants.items():
        said = [why(name, trial.seconds.get(step, {}), report=report, step=step)]
        said += [f"{failed} does not do here, see the node's log" for failed in trial.failed.get(step, ())]
        text = "; ".join(word for word in said if word)
        if text:
            found.append(f"{step}: {text}" if step else text)
    return "; ".join(found)
