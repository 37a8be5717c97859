"""The results as tables and as a page: pure, from the JSON alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.federated.comparison import OF_POOLED
from benchmarks.table import Table, markdown

Results = Mapping[str, Any]

TITLE = "Federated rounds against pooled data and against each site alone"


def tables(results: Results) -> list[Table]:
    """Two for each study, and the bars."""
    found = [table for study in results["studies"] for table in (_rounds(study), _alone(study))]
    return [*found, bars(results)]


def bars(results: Results) -> Table:
    """What had to be reached."""
    rows = []
    for study in results["studies"]:
        splits = study["splits"]
        above = sum(split["above_all"] for split in splits)
        ways = f"{len(splits)} ways to hold data back"
        pooled = f"at least {OF_POOLED} of the pooled model, mean of {ways}"
        lead = min(_leads(study))
        alone = "above every site's own model on the others' data, mean of them"
        rows += [
            _bar(study, pooled, f"{study['of_pooled']:.3f}", study["of_pooled"] >= OF_POOLED),
            _bar(study, alone, f"{lead:+.3f} at least; each of them in {above} ways", lead > 0),
        ]
    return Table(title="The bars", columns=("study", "bar", "found", ""), rows=tuple(rows))


def held(results: Results) -> bool:
    """Whether every bar was reached."""
    return all(study["of_pooled"] >= OF_POOLED and min(_leads(study)) > 0 for study in results["studies"])


def page(results: Results) -> str:
    """The whole Markdown page."""
    sections = [
        f"# {TITLE}",
        f"Written by `{results['taken']['command']}`; a new run replaces it. All figures are in `federated.json` "
        "beside this page.",
        "Every model begins with the package's first version and is trained by the package's own recipe and settings: "
        "the *federated* one over rounds in which each site trains on its own part and the mean by examples goes on "
        "(FedAvg), the *pooled* one on all parts in one place (the mean of three, with rows in other orders), *a "
        "site's own* on its part alone; the latter two with as many passes over the data as all rounds together. "
        "Accuracy is that on what the sites hold back, a quarter of each. No mesh takes part, so that many ways to "
        "hold data back can be tried; `federated_mesh.md` is of runs through one.",
        "## The bars",
        markdown(bars(results)),
        *(_section(study) for study in results["studies"]),
        "## Taken on",
        taken(results),
    ]
    return "\n\n".join(sections) + "\n"


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
    """Means over all ways to hold data back."""
    columns = ("site", "own model at home", "own model at the other sites", "federated there")
    by_site = zip(*(split["alone"] for split in study["splits"]), strict=True)
    rows = [
        (
            of_one[0]["site"],
            *(
                f"{statistics.mean(one[figure] for one in of_one):.3f}"
                for figure in ("own", "elsewhere", "federated_elsewhere")
            ),
        )
        for of_one in by_site
    ]
    return Table(title=f"{study['title']}: each site alone", columns=columns, rows=tuple(rows))


def _bar(study: Mapping[str, Any], bar: str, found: str, reached: bool) -> tuple[str, ...]:
    return (study["name"], bar, found, "held" if reached else "NOT HELD")


def _leads(study: Mapping[str, Any]) -> list[float]:
    """By site, how far the federated model is above its own on the other sites' data, in the mean."""
    by_site = zip(*(split["alone"] for split in study["splits"]), strict=True)
    return [statistics.mean(one["federated_elsewhere"] - one["elsewhere"] for one in of_one) for of_one in by_site]


def _settings(study: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name} = {value}`" for name, value in study["settings"].items())


def taken(results: Results) -> str:
    """When, of what, and on what machine."""
    when, machine = results["taken"], results["machine"]
    changes = ", with uncommitted changes" if when["uncommitted_changes"] else ""
    return (
        f"- {when['at']}, commit `{when['commit'][:12]}`{changes}, {when['duration_s']:.0f} s in all\n"
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; Python {machine['python']}, NumPy "
        f"{machine['libraries']['numpy']}"
    )
