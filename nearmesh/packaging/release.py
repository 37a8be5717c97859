"""From a folder to an artifact that may be published: its variants are made, tried and judged first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from nearmesh.errors import InvalidInput, PackageError
from nearmesh.package import load
from nearmesh.packaging.agent_run import by_agent
from nearmesh.packaging.build import Artifact, build
from nearmesh.packaging.evaluate import Run, Subject, evaluate, kept_report
from nearmesh.packaging.quantize import make
from nearmesh.packaging.sources import OnProgress, default_cache, quiet
from nearmesh.report import REPORT_FILE, Report

# Told what is being done.
OnStep = Callable[[str], None]


class GateFailed(PackageError):
    """A variant is not good enough to be published."""

    def __init__(self, message: str, report: Report) -> None:
        """`report` has the figures of all."""
        super().__init__(message)
        self.report = report


def release(
    folder: Path,
    cache: Path | None = None,
    *,
    without: Collection[str] = (),
    more: Mapping[str, Path] | None = None,
    run: Run = by_agent,
    on_step: OnStep = lambda step: None,
    on_note: OnStep = lambda note: None,
    on_progress: OnProgress = quiet,
) -> Artifact:
    """Makes the package's variants, tries them, and builds the artifact with all but those named by `without`.

    `more` are further files by their published names, as `build` takes them. `on_note` hears of variants that cannot be
    made here and so are not among them. Raises GateFailed with the figures of each variant that is not good enough, and
    as `build` and `make`.
    """
    cache = cache or default_cache()
    package = load(folder)
    _check_named(package.name, {v.name for v in (*package.made_variants, *package.variants)}, without)
    made = []
    wanted = {quantize.variant for quantize in package.quantize} - set(without)
    if wanted:
        on_step(f"making {', '.join(sorted(wanted))}")
        made = [found for found in make(package, folder, cache) if found.variant.name not in without]
    for found in made:
        if found.skipped:
            on_note(f"{found.variant.name} is not published: {found.skipped}")
    here = {found.variant.file: found.path for found in made if found.path is not None}
    if package.evaluation is None and not here:
        return build(folder, cache, more=more, without=without, on_progress=on_progress)
    subject = Subject(package=package, folder=folder, cache=cache, made=made)
    report, path = kept_report(
        subject, lambda: evaluate(subject, run=run, on_variant=lambda label: on_step(f"trying {label}"))
    )
    _check_passed(package.name, report, without)
    files = {**here, REPORT_FILE: path, **(more or {})}
    return build(folder, cache, more=files, without=without, on_progress=on_progress)


def _check_named(model: str, names: Collection[str], without: Collection[str]) -> None:
    if unknown := sorted(set(without) - set(names)):
        raise InvalidInput(f"{model!r} has no variant {unknown[0]!r}, but {', '.join(sorted(names))}")


def _check_passed(model: str, report: Report, without: Collection[str]) -> None:
    failed = [variant for variant in report.failed if variant.name not in without]
    if failed:
        figures = "; ".join(f"{variant.label}: {variant.why}" for variant in failed)
        leave_out = " ".join(f"--without {name}" for name in dict.fromkeys(variant.name for variant in failed))
        raise GateFailed(
            f"{model!r} is not published, since not every variant passed its gate. {figures}. "
            f"To publish without: {leave_out}",
            report,
        )
