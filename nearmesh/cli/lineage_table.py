"""Where a version comes from that federated rounds made, on a screen."""

from __future__ import annotations

from typing import Any

import click

from nearmesh.cli.output import NOTHING, Number, moment, print_table

Record = dict[str, Any]


def print_lineage(lineage: Record, *, title: str = "") -> None:
    """A line for each site, by its pseudonym, and what all of them together say of it."""
    metric = lineage["metric"]
    columns = ("site", Number("rounds"), Number("examples"), Number(f"{metric} before"), Number(f"{metric} after"))
    rows = [(s["site"], str(s["rounds"]), str(s["examples"]), *_figures(s, metric)) for s in lineage["sites"]]
    if rows:
        examples = sum(site["examples"] for site in lineage["sites"])
        rows.append(("all", str(lineage["round"]), str(examples), *_figures(lineage, metric)))
    print_table(columns, rows, title=f"{title or 'Lineage'}: {_words(lineage)}", empty="no site took part")
    if privacy := lineage.get("privacy"):
        click.echo(f"differential privacy: epsilon {privacy['epsilon']:.3g} at delta {privacy['delta']:g}")


def _words(lineage: Record) -> str:
    options = ", ".join(f"{name} {value:g}" for name, value in lineage["strategy_options"].items())
    return (
        f"round {lineage['round']} of run {lineage['run']} from {lineage['parent']['version']}, "
        f"{lineage['strategy']}{f' ({options})' * bool(options)}, begun {moment(lineage['started_at_s'])} UTC by "
        f"{lineage['started_by']}"
    )


def _figures(said: Record, metric: str) -> tuple[str, str]:
    return _figure(said["metrics_before"].get(metric)), _figure(said["metrics"].get(metric))


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"
