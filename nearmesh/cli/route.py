"""`nearmesh route`: which node answers whom, why, and what the router is to aim for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nearmesh.cli.output import NOTHING, Number, console, ms, note, print_json, print_table
from nearmesh.cli.session import Session, json_option, pass_session
from nearmesh.routing import OBJECTIVES, format_usd

if TYPE_CHECKING:
    from nearmesh.cli.records import Record
    from nearmesh.client.admin import AdminClient

T = TypeVar("T")

CANDIDATE_COLUMNS = (
    "node",
    "site",
    "region",
    "ready",
    Number("network p95, ms"),
    Number("service p95, ms"),
    Number("total p95, ms"),
    Number("USD per 1,000"),
    "in time",
    "why",
)

objective_option = click.option("--objective", type=click.Choice(OBJECTIVES), help="Instead of the model's own.")


@click.group()
def route() -> None:
    """Which node answers whom, and why."""


@route.command()
@click.argument("model", metavar="MODEL")
@json_option
@pass_session
def show(session: Session, model: str, as_json: bool) -> None:
    """Who answers each client region.

    For each region and each objective: the node, the time it should take, and its price.
    """
    found = session.ask(lambda admin: _choices(admin, model))
    if as_json:
        print_json(found)
        return
    regions = sorted({choice["client_region"] for choice in found})
    cells = {(choice["client_region"], choice["objective"]): _cell(choice) for choice in found}
    rows = [(region, *(cells[region, objective] for objective in OBJECTIVES)) for region in regions]
    headings = [f"{objective} (total p95, USD per 1,000)" for objective in OBJECTIVES]
    print_table(("client region", *headings), rows, title=model, empty="no node has joined yet")


async def _choices(admin: AdminClient, model: str) -> list[Record]:
    await admin.model(model)  # An unknown model is an error, also while the mesh has no node.
    regions = await client_regions(admin)
    pairs = [(region, objective) for region in regions for objective in OBJECTIVES]
    return await asyncio.gather(*(choice(admin, model, region, objective) for region, objective in pairs))


async def client_regions(admin: AdminClient) -> list[str]:
    """The regions of the mesh's machines, gateways included."""
    return sorted({latency.region for latency in await admin.latencies()})


async def choice(admin: AdminClient, model: str, region: str, objective: str = "") -> Record:
    """Who answers a client of that region; `node` is None when nobody can."""
    from nearmesh.cli import records

    found = records.route(await admin.explain(model, region, objective=objective))
    first = next((candidate for candidate in found["candidates"] if candidate["ready"]), None)
    keys = ("node", "site", "region", "total_ms_p95", "usd_per_1000", "in_time", "why")
    chosen = {key: first[key] if first else None for key in keys}
    return {"model": model, "client_region": region, "objective": found["objective"], **chosen}


def _cell(chosen: Record) -> str:
    if chosen["node"] is None:
        return NOTHING
    late = "" if chosen["in_time"] else ", late"
    return f"{chosen['node']} ({ms(chosen['total_ms_p95'])} ms{late}, {format_usd(chosen['usd_per_1000'])})"


@route.command()
@click.option("--from", "region", required=True, metavar="REGION", help="Where the client is.")
@click.option("--model", required=True)
@objective_option
@json_option
@pass_session
def explain(session: Session, region: str, model: str, objective: str | None, as_json: bool) -> None:
    """Why a node won, and the others lost.

    Every node of the mesh as a client of one region sees it, the choice first.
    """
    from nearmesh.cli import records

    found = records.route(session.ask(lambda admin: admin.explain(model, region, objective=objective or "")))
    if as_json:
        print_json(found)
        return
    version = f"{model}@{found['version']}" if found["version"] else f"{model}, not deployed"
    wanted = f"{found['objective']} within {ms(found['deadline_ms'])} ms"
    rows = [_candidate_row(candidate) for candidate in found["candidates"]]
    print_table(CANDIDATE_COLUMNS, rows, title=f"{version} from {region}: {wanted}", empty="no node has joined yet")
    if any(not candidate["network_measured"] for candidate in found["candidates"]):
        console().print("~ inferred from the distance and from ways near by: nobody has measured it yet", style="dim")


def _candidate_row(c: Record) -> tuple[str, ...]:
    estimate = "" if c["network_measured"] else "~"
    place = (c["node"], c["site"], c["region"])
    network = estimate + ms(c["network_ms_p95"])
    if not c["ready"]:
        return (*place, "no", network, NOTHING, NOTHING, NOTHING, NOTHING, c["why"])
    times = (network, ms(c["service_ms_p95"]), ms(c["total_ms_p95"]))
    return (*place, "yes", *times, format_usd(c["usd_per_1000"]), "yes" if c["in_time"] else "no", c["why"])


@route.command("set")
@click.argument("model", metavar="MODEL")
@click.option("--objective", type=click.Choice(OBJECTIVES), help="What the router aims for.")
@click.option("--deadline-ms", type=click.FloatRange(0, min_open=True), help="Within which an answer is wanted.")
@click.option("--regions", metavar="REGION,...", help="The only ones that may serve it, whatever that costs.")
@click.option("--any-region", is_flag=True, help="Any region may serve it again.")
@json_option
@pass_session
def set_(
    session: Session,
    model: str,
    objective: str | None,
    deadline_ms: float | None,
    regions: str | None,
    any_region: bool,
    as_json: bool,
) -> None:
    """Change what the router aims for.

    It wins over what the package of MODEL says, also of its later versions.
    """
    from nearmesh.cli import records

    if objective is None and deadline_ms is None and regions is None and not any_region:
        raise click.UsageError("nothing to set: give --objective, --deadline-ms, --regions or --any-region")
    if regions is not None and any_region:
        raise click.UsageError("--regions binds the model to regions and --any-region frees it; give one of them")
    named = _regions(regions) if regions is not None else []
    changed: dict[str, Any] = {"objective": objective or "", "deadline_ms": deadline_ms or 0.0}
    changed |= {"regions": named, "any_region": any_region}
    message, empty = session.ask(lambda admin: _with_empty(admin, admin.set_policy(model, **changed), named))
    found = records.policy(message)
    _say_empty(empty)
    if as_json:
        print_json(found)
    else:
        bound = f", only in {', '.join(found['regions'])}" if found["regions"] else ""
        click.echo(f"{model}: {found['objective']} within {ms(found['deadline_ms'])} ms{bound}")


async def _with_empty(admin: AdminClient, change: Awaitable[T], regions: Sequence[str]) -> tuple[T, list[str]]:
    """What the change answers, and those of the regions that have no node: a misspelt one looks just like that."""
    from nearmesh.cli import records

    done = await change
    nodes = [records.node(message) for message in await admin.nodes()] if regions else []
    there = {node["region"] for node in nodes if node["kind"] == "node" and not node["removed"]}
    return done, [region for region in regions if region not in there]


def _say_empty(regions: list[str]) -> None:
    if regions:
        note(f"no node of this mesh is in {', '.join(regions)}")


def _regions(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise click.UsageError(f"--regions {text!r} has an empty name; give such as europe-west1,europe-west4")
    return found


@route.command()
@click.argument("client_region", metavar="CLIENT_REGION", required=False)
@click.argument("regions", metavar="REGION...", nargs=-1)
@click.option("--clear", is_flag=True, help="Take the rule for CLIENT_REGION back.")
@json_option
@pass_session
def residency(
    session: Session, client_region: str | None, regions: tuple[str, ...], clear: bool, as_json: bool
) -> None:
    """Bind the clients of a region to regions.

    Their requests are answered from each named REGION and from nowhere else, also if nothing is left there. Without
    arguments the rules are listed.
    """
    from nearmesh.cli import records

    if client_region is None:
        if clear:
            raise click.UsageError("--clear needs the CLIENT_REGION whose rule it takes back")
        rules = [records.residency(rule) for rule in session.ask(lambda admin: admin.residency())]
        _print_rules(rules, as_json)
        return
    if clear == bool(regions):
        raise click.UsageError("give each REGION that may answer its clients, or --clear to take the rule back")
    name = client_region
    message, empty = session.ask(lambda admin: _with_empty(admin, admin.set_residency(name, regions), regions))
    found = records.residency(message)
    _say_empty(empty)
    if as_json:
        print_json(found)
    else:
        where = f"only from {', '.join(found['regions'])}" if found["regions"] else "from any region"
        click.echo(f"clients of {client_region} are answered {where}")


def _print_rules(rules: list[Record], as_json: bool) -> None:
    if as_json:
        print_json(rules)
        return
    rows = [(rule["client_region"], ", ".join(rule["regions"])) for rule in rules]
    print_table(("client region", "is answered only from"), rows, empty="any region may answer any client")
