"""What the variants of the packages in models/ are worth: each made, tried on its evaluation set, and timed here.

    python -m benchmarks.variants

Every package is tried several times, one after the other, so that what else the machine does meets all of them; times
are the best of the rounds, since others only slow a variant down. Writes benchmarks/results/variants.{json,md}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.table import Table, markdown
from nearmesh.package import load
from nearmesh.packaging.evaluate import Subject, evaluate
from nearmesh.packaging.quantize import make
from nearmesh.packaging.sources import default_cache
from nearmesh.report import Measured, Report

MODELS = Path(__file__).parents[1] / "models"
RESULTS = Path(__file__).with_name("results")
ROUNDS = 3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument(
        "--models", nargs="*", default=sorted(path.parent.name for path in MODELS.glob("*/model.toml"))
    )
    chosen = options.parse_args()
    rounds = [measured(chosen.models) for _ in range(chosen.rounds)]
    reports = [best(of_one) for of_one in zip(*rounds, strict=True)]
    text = json.dumps([json.loads(report.to_bytes()) for report in reports], indent=1)
    (RESULTS / "variants.json").write_text(text + "\n", "utf-8")
    (RESULTS / "variants.md").write_text(page(reports, chosen.rounds), "utf-8")
    print(page(reports, chosen.rounds))


def measured(models: Sequence[str]) -> list[Report]:
    """One round."""
    return [evaluate(subject(MODELS / model)) for model in models]


def subject(folder: Path) -> Subject:
    package = load(folder)
    return Subject(
        package=package, folder=folder, cache=default_cache(), made=list(make(package, folder, default_cache()))
    )


def best(reports: Sequence[Report]) -> Report:
    """The first report with each variant's best times."""
    variants = zip(*(report.variants for report in reports), strict=True)
    return replace(reports[0], variants=tuple(_fastest(of_one) for of_one in variants))


def _fastest(rounds: Sequence[Measured]) -> Measured:
    return replace(
        rounds[0],
        ms_p50=min(each.ms_p50 for each in rounds),
        rows_per_second=max(each.rows_per_second for each in rounds),
    )


def page(reports: Sequence[Report], rounds: int) -> str:
    """The whole Markdown page."""
    machine, libraries = reports[0].machine, reports[0].libraries
    where = (
        f"{machine.cores} cores of {machine.processor} ({', '.join(machine.features) or 'no instructions for 8 bits'})"
    )
    columns = ("package", "variant", "metric", "", "agrees", "size", "p50 of one row", "rows a second")
    rows = tuple(_row(report, variant) for report in reports for variant in report.variants)
    return (
        "# Variants\n\n"
        "Written by `python -m benchmarks.variants`; a new run replaces it. The figures are in `variants.json` beside "
        "this page.\n\n"
        f"Each variant answers its package's evaluation set by a node's own engines; times are the best of {rounds} "
        f"rounds. Taken on {where}, with ONNX Runtime {libraries['onnxruntime']}.\n\n"
        f"{markdown(Table(title='Variants', columns=columns, rows=rows))}\n"
    )


def _row(report: Report, variant: Measured) -> tuple[str, ...]:
    reference = next(other for other in report.variants if other.step == variant.step and other.agreement is None)
    faster = "" if variant is reference else f" ({reference.ms_p50 / variant.ms_p50:.1f} times as fast)"
    more = "" if variant is reference else f" ({variant.rows_per_second / reference.rows_per_second:.1f} times)"
    return (
        report.model,
        variant.label,
        report.metric.rpartition(":")[2],
        _number(variant.metric),
        "" if variant.agreement is None else f"{100 * variant.agreement:.2f} %",
        f"{variant.size_bytes / 1e6:.2f} MB",
        f"{variant.ms_p50:.3g} ms{faster}",
        f"{variant.rows_per_second:,.0f}{more}",
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
