"""The results without a mesh as tables and as a page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.federated.comparison import OF_POOLED
from benchmarks.federated.report import Bar, Report, alone_table
from benchmarks.table import Table, markdown


def _bars(study: Mapping[str, Any]) -> list[Bar]:
    splits, of_pooled, lead = study["splits"], study["of_pooled"], min(_leads(study))
    above = sum(split["above_all"] for split in splits)
    ways = f"{len(splits)} ways to hold data back"
    pooled = f"at least {OF_POOLED} of the pooled model, mean of {ways}"
    alone = "above every site's own model on the others' data, mean of them"
    return [
        (pooled, f"{of_pooled:.3f}", of_pooled >= OF_POOLED),
        (alone, f"{lead:+.3f} at least; each of them in {above} ways", lead > 0),
    ]


def _section(study: Mapping[str, Any]) -> str:
    return (
        f"## {study['title']}\n\n`{study['name']}`: {study['rounds']} rounds, settings {_settings(study)}; "
        f"{study['examples']} examples at the sites, of which a quarter is held back.\n\n{markdown(_rounds(study))}"
        f"\n\n{markdown(_alone(study))}"
    )


def _rounds(study: Mapping[str, Any]) -> Table:
    """The way to hold data back that the sites' folders have, and the spread over the others."""
    columns = ("", "accuracy", "mean of all ways", "lowest", "highest")
    splits = study["splits"]
    rows = [
        _spread("first version", [split["first"] for split in splits]),
        *(
            _spread(f"federated, after round {at + 1}", [split["federated"][at] for split in splits])
            for at in range(study["rounds"])
        ),
        _spread("pooled", [split["pooled"] for split in splits]),
        _spread("federated of pooled", [split["of_pooled"] for split in splits]),
    ]
    return Table(title=study["title"], columns=columns, rows=tuple(rows))


def _spread(name: str, values: list[float]) -> tuple[str, ...]:
    return (name, *(f"{value:.3f}" for value in (values[0], statistics.mean(values), min(values), max(values))))


def _alone(study: Mapping[str, Any]) -> Table:
    return alone_table(study, "federated there", _by_site(study))


def _leads(study: Mapping[str, Any]) -> list[float]:
    """By site, how far the federated model is above its own on the other sites' data, in the mean."""
    return [
        statistics.mean(one["federated_elsewhere"] - one["elsewhere"] for one in of_one) for of_one in _by_site(study)
    ]


def _by_site(study: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], ...]]:
    """What was found of each site, in all ways to hold data back."""
    return list(zip(*(split["alone"] for split in study["splits"]), strict=True))


def _settings(study: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name} = {value}`" for name, value in study["settings"].items())


REPORT = Report(
    title="Federated rounds against pooled data and against each site alone",
    file="federated.json",
    about=(
        "Every model begins with the package's first version and is trained by the package's own recipe and settings: "
        "the *federated* one over rounds in which each site trains on its own part and the mean by examples goes on "
        "(FedAvg), the *pooled* one on all parts in one place (the mean of three, with rows in other orders), *a "
        "site's own* on its part alone; the latter two with as many passes over the data as all rounds together. "
        "Accuracy is that on what the sites hold back, a quarter of each. No mesh takes part, so that many ways to "
        "hold data back can be tried; `federated_mesh.md` is of runs through one."
    ),
    bars_of=_bars,
    tables_of=lambda study: (_rounds(study), _alone(study)),
    section_of=_section,
)
