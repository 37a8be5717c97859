"""How a decision looks on a screen: what it was made by, what each node was expected to do, and why it won or lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from nearmesh.cli.output import NOTHING, Number, console, moment, ms, percent, print_facts, print_table
from nearmesh.routing import format_usd

if TYPE_CHECKING:
    from nearmesh.cli.records import Record

# In 120 columns, with names as long as those of the local mesh.
NUMBER_COLUMNS = (
    "node",
    "region",
    Number("share"),
    Number("in time"),
    Number("total, ms\np50"),
    Number("\np95"),
    Number("\np99"),
    Number("network\np95, ms"),
    Number("node\np95, ms"),
    Number("USD\nper 1,000"),
    "",
)
ACCURACY_COLUMNS = (
    "model",
    "client region",
    "objective",
    "by",
    Number("calls"),
    Number("failed"),
    Number("late"),
    Number("within\np50"),
    Number("\np95"),
    Number("\np99"),
    Number("actual over\npredicted"),
)
# Shares below this are on their way in or out.
LEAST_SHARE = 0.005


def print_explanation(route: Record, place: str) -> None:
    """A route with the accuracy of such routes in it, for a client at `place`."""
    candidates = route["candidates"]
    version = f"{route['model']}@{route['version']}" if route["version"] else f"{route['model']}, not deployed"
    near = "" if route["client_region"] == place.partition("/")[0] else f", placed as {route['client_region']}"
    wanted = f"{route['objective']} within {ms(route['deadline_ms'])} ms"
    console().print(f"{version} from {place}{near}: {wanted}", style="bold")
    print_facts(_facts(route))
    click.echo()
    if not candidates:
        console().print("no node has joined yet", style="dim")
        return
    able = [candidate for candidate in candidates if candidate["ready"]]
    from_snapshot = route["expires_at_s"] > 0
    print_table(NUMBER_COLUMNS, (_numbers(c, from_snapshot) for c in able), empty="no node can answer")
    click.echo()
    rows = ((c["node"], c["site"], percent(c["utilization"]), c["why"]) for c in candidates)
    print_table(("node", "site", Number("busy"), "why"), rows)
    if not from_snapshot and any(not candidate["network_measured"] for candidate in able):
        console().print("~ inferred from the distance and from ways near by: nobody has measured it yet", style="dim")


def _facts(route: Record) -> list[tuple[str, str]]:
    return [
        ("demand", f"{route['demand_per_s']:.3g} requests per second are placed from here"),
        ("decision", decision(route)),
        *((("note", route["note"]),) if route["note"] else ()),
        *(("accuracy", in_words(found)) for found in route["accuracy"]),
    ]


def decision(route: Record) -> str:
    """Which one it was, and whether a snapshot told."""
    until = f", from a snapshot that is good until {moment(route['expires_at_s'])} UTC" if route["expires_at_s"] else ""
    return f"no. {route['generation']}{until}"


def in_words(accuracy: Record) -> str:
    """How right predictions were, in a line."""
    calls = f"{accuracy['answered']:,.0f} calls" + (" by gateways" if accuracy["reporter"] == "gateway" else "")
    failed = f"; {accuracy['failed']:,.0f} failed" if accuracy["failed"] >= 1 else ""
    if not accuracy["compared"]:
        return f"of the last {calls} nobody compared any with its prediction{failed}"
    within = ", ".join(f"{percent(accuracy[f'within_{p}'])} within {p}" for p in ("p50", "p95", "p99"))
    return f"of the last {calls}: {within}; {percent(accuracy['late'])} late{failed}"


def print_accuracy(rows: Iterable[Record]) -> None:
    """One line for each client region, model, objective and kind of reporter."""
    print_table(ACCURACY_COLUMNS, map(_accuracy_row, rows), empty="no calls have been reported of late")


def _accuracy_row(found: Record) -> tuple[str, ...]:
    place = (found["model"], found["client_region"], found["objective"], found["reporter"])
    counts = (f"{found['answered']:,.0f}", f"{found['failed']:,.0f}")
    if not found["compared"]:
        return (*place, *counts, *[NOTHING] * 5)
    shares = [percent(found[name]) for name in ("late", "within_p50", "within_p95", "within_p99")]
    return (*place, *counts, *shares, f"{found['actual_over_predicted']:.2f}")


def _numbers(c: Record, from_snapshot: bool) -> tuple[str, ...]:
    inferred = "" if c["network_measured"] or from_snapshot else "~"
    return (
        c["node"],
        c["region"],
        percent(c["share"]) if c["share"] else NOTHING,
        percent(c["p_in_time"], digits=1),
        *(ms(c[f"total_ms_{level}"]) for level in ("p50", "p95", "p99")),
        inferred + ms(c["network_ms_p95"]),
        ms(c["service_ms_p95"]),
        format_usd(c["usd_per_1000"]),
        terms(c),
    )


def terms(c: Record) -> str:
    """What there is to say of a price."""
    return ", ".join(word for word, on in (("spot", c["spot"]), ("with transfer", c["transfer_usd_per_1000"])) if on)


def split(shares: Sequence[Record]) -> str:
    """Who gets which part; of one who gets all, the name."""
    if len(shares) == 1:
        return str(shares[0]["node"])
    return ", ".join(f"{found['node']} {percent(found['share'])}" for found in shares)
