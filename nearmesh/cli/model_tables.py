"""Models on a screen: the list of all, and one in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nearmesh.cli.idle import print_idle, span
from nearmesh.cli.lineage_table import print_lineage
from nearmesh.cli.output import NOTHING, Number, moment, ms, print_table, size
from nearmesh.cli.report_table import print_report

if TYPE_CHECKING:
    from nearmesh.cli.records import Record

# Of a digest; enough to tell versions apart at a glance, `--json` has all of it.
DIGEST_CHARACTERS = 19
# Of a bar that shows how far a pull has come.
BAR_CHARACTERS = 12
# Deployments before that are of interest to the audit log only.
LATEST = 5


def print_models(found: list[Record], *, title: str = "") -> None:
    """A line for each model."""
    rows = [
        (
            record["model"],
            _present(record),
            str(len(record["versions"])),
            str(sum(replica["state"] == "ready" and replica["live"] for replica in record["replicas"])),
            str(sum(replica["state"] == "failed" and replica["live"] for replica in record["replicas"])),
            record["objective"],
            ms(record["deadline_ms"]),
        )
        for record in found
    ]
    counts = (Number("versions"), Number("nodes ready"), Number("nodes failed"))
    columns = ("model", "deployed", *counts, "objective", Number("deadline, ms"))
    print_table(columns, rows, title=title, empty="nothing published yet: `nearmesh model publish FOLDER` does it")


def _present(record: Record) -> str:
    """The version deployed last, and where if not everywhere."""
    if not record["deployments"]:
        return NOTHING
    latest = record["deployments"][0]
    return f"{latest['version']} at {_where(latest)}" if _is_bound(latest) else str(latest["version"])


def _is_bound(deployment: Record) -> bool:
    return bool(deployment["sites"] or deployment["regions"] or deployment["replicas"])


def print_model(record: Record) -> None:
    """Everything about one model."""
    bound = f", only in {', '.join(record['regions'])}" if record["regions"] else ""
    click.echo(f"{record['model']}: {record['objective']} within {ms(record['deadline_ms'])} ms{bound}")
    print_idle(record)
    click.echo()
    _print_versions(record)
    click.echo()
    _print_variants(record)
    _print_deployments(record)
    click.echo()
    _print_replicas(record)


def _print_versions(record: Record) -> None:
    rows = [
        (v["version"], v["digest"][:DIGEST_CHARACTERS], size(v["size_bytes"]), moment(v["created_at_s"]))
        for v in record["versions"]
    ]
    print_table(("version", "digest", Number("size"), "published, UTC"), rows, title="Versions, newest first")


def _print_variants(record: Record) -> None:
    """Of the newest version, if anything was measured of it; and where it comes from, if rounds made it."""
    newest = record["versions"][0] if record["versions"] else {}
    if newest.get("report"):
        print_report(newest["report"], title=f"Variants of {newest['version']}")
        click.echo()
    if newest.get("lineage"):
        print_lineage(newest["lineage"], title=f"{newest['version']} comes from")
        click.echo()


def _print_deployments(record: Record) -> None:
    rows = [(d["version"], _where(d), moment(d["created_at_s"]), d["actor"]) for d in record["deployments"][:LATEST]]
    more = len(record["deployments"]) - LATEST
    title = "Deployments, newest first" + (f" ({more} older ones not shown)" if more > 0 else "")
    print_table(("version", "where", "when, UTC", "who"), rows, title=title, empty="not deployed")


def _where(deployment: Record) -> str:
    places = ", ".join((*deployment["sites"], *deployment["regions"])) or "every site"
    return f"{places}: {', '.join(deployment['nodes'])}" if deployment["replicas"] else places


def _print_replicas(record: Record) -> None:
    measured = (Number("service p50, ms"), Number("p95, ms"), Number("inferences per s"))
    columns = ("node", "version", "state", "idle", "variant", "why", *measured, "detail")
    rows = [_replica_row(replica) for replica in record["replicas"]]
    print_table(columns, rows, title="Nodes", empty="no node has it")


def _replica_row(replica: Record) -> tuple[str, ...]:
    state = replica["state"] + _pulled(replica) if replica["live"] else f"gone (was {replica['state']})"
    state += ", on trial" if replica["on_trial"] else ""
    state += ", cold" if replica["cold"] and replica["state"] == "ready" else ""
    idle = span(replica["idle_s"]) if replica["idle_s"] >= 1 else NOTHING
    version = replica["version"] or replica["digest"][:DIGEST_CHARACTERS]
    measured = (NOTHING, NOTHING, NOTHING)
    if replica["inferences_per_second"]:
        measured = (
            ms(replica["service_ms_p50"]),
            ms(replica["service_ms_p95"]),
            f"{replica['inferences_per_second']:.0f}",
        )
    variant = (replica["variant"] or NOTHING, replica["variant_why"])
    return (replica["node"], version, state, idle, *variant, *measured, replica["detail"])


def _pulled(replica: Record) -> str:
    """How far a pull has come."""
    if not replica["pull_bytes"]:
        return ""
    share = min(1.0, replica["pulled_bytes"] / replica["pull_bytes"])
    filled = round(share * BAR_CHARACTERS)
    bar = "━" * filled + "╌" * (BAR_CHARACTERS - filled)
    return f" {bar} {share:.0%} of {size(replica['pull_bytes'])}"
