"""The results of the runs through a mesh as tables and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.federated.comparison import OF_POOLED
from benchmarks.federated.report import Bar, Report, alone_table
from benchmarks.table import Table, markdown

SERVED, INT8 = "served", "variant int8"


def _bars(study: Mapping[str, Any]) -> list[Bar]:
    errors = len(study["errors"])
    return [
        ("served, with an int8 variant that passed its gate", study["state"], _is_served(study)),
        (f"at least {OF_POOLED} of the pooled model", f"{study['of_pooled']:.3f}", study["of_pooled"] >= OF_POOLED),
        ("above every site's own model on the others' data", _lead(study), study["above_all"]),
        ("no error among the requests meanwhile", f"{errors} of {study['requests']}", not errors),
    ]


def _is_served(study: Mapping[str, Any]) -> bool:
    return bool(study["state"] == SERVED and INT8 in study["gate"])


def _lead(study: Mapping[str, Any]) -> str:
    leads = [one["federated_elsewhere"] - one["elsewhere"] for one in study["alone"]]
    return f"{min(leads):+.3f} at least"


def _section(study: Mapping[str, Any]) -> str:
    history = ", ".join(f"{value:.3f}" for value in study["history"])
    gate = study["gate"].get(INT8, "none")
    return (
        f"## {study['title']}\n\n`{study['name']}`: {study['rounds']} rounds; {study['took_s']:.0f} s from the command "
        f"to its end. Accuracy at the sites after each round, the first version before: {history}. Served: "
        f"{study['served']:.3f}, by {' and '.join(study['variants'])}; int8 at the gate: {gate}. Pooled: "
        f"{study['pooled']:.3f}. Requests: {study['requests']}, p99 {study['p99_ms']:.0f} ms.\n\n"
        f"{markdown(_alone(study))}\n\nWhat the command printed in the end:\n\n"
        f"```text\n{_end(study['table'])}\n```"
    )


def _end(printed: str) -> str:
    """From the tables on."""
    at = printed.find("Rounds: ")
    return printed[max(at, 0) :].strip()


def _alone(study: Mapping[str, Any]) -> Table:
    return alone_table(study, "served version there", [[one] for one in study["alone"]])


REPORT = Report(
    title="Federated runs through a mesh, from the first version to a served one",
    file="federated_mesh.json",
    about=(
        "A control plane and a node for each site, as processes on one machine. One command, `nearmesh run start "
        "--auto-promote`, goes from the first version to the served one: rounds at the sites, the gate, int8, "
        "signature, and a canary of two steps, while 20 requests a second are asked. The accuracy is what the mesh "
        "itself answers on the rows that the sites hold back, by the variant that its nodes have found the faster. The "
        "pooled models, of which the mean counts, and each site's own are made by the same recipe from the same rows "
        "without a mesh."
    ),
    bars_of=_bars,
    tables_of=lambda study: (_alone(study),),
    section_of=_section,
)
