"""`nearmesh route`: which node answers whom, why, and what the router is to aim for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nearmesh.cli.locality import Locality, LocalityType
from nearmesh.cli.output import NOTHING, ms, note, percent, print_json, print_table
from nearmesh.cli.route_tables import LEAST_SHARE, print_accuracy, print_explanation
from nearmesh.cli.session import Session, json_option, pass_session
from nearmesh.routing import OBJECTIVES, format_usd

if TYPE_CHECKING:
    from nearmesh.cli.records import Record
    from nearmesh.client.admin import AdminClient

T = TypeVar("T")

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
    ready = [candidate for candidate in found["candidates"] if candidate["ready"]]
    first = ready[0] if ready else None
    keys = ("node", "site", "region", "total_ms_p95", "usd_per_1000", "in_time", "why")
    chosen = {key: first[key] if first else None for key in keys}
    placed = [candidate for candidate in ready if candidate["share"] >= LEAST_SHARE] or ready[:1]
    shares = [{key: one[key] for key in ("node", "share", *keys[3:6])} for one in placed]
    place = {"model": model, "client_region": region, "objective": found["objective"]}
    return {**place, "demand_per_s": found["demand_per_s"], **chosen, "shares": shares}


def _cell(chosen: Record) -> str:
    if chosen["node"] is None:
        return NOTHING
    alone = len(chosen["shares"]) == 1
    return ", ".join(_part(one, "" if alone else f" {percent(one['share'])}") for one in chosen["shares"])


def _part(one: Record, share: str) -> str:
    late = "" if one["in_time"] else ", late"
    return f"{one['node']}{share} ({ms(one['total_ms_p95'])} ms{late}, {format_usd(one['usd_per_1000'])})"


@route.command()
@click.option(
    "--from",
    "locality",
    required=True,
    type=LocalityType(),
    metavar="LOCALITY",
    help="Where the client is: REGION, REGION/SITE, or LATITUDE,LONGITUDE in degrees.",
)
@click.option("--model", required=True)
@objective_option
@json_option
@pass_session
def explain(session: Session, locality: Locality, model: str, objective: str | None, as_json: bool) -> None:
    """Why a node won, and the others lost.

    What the decision was made by, what every node was expected to do for a client there, what it costs, and how right
    such predictions were of late. The choice is first.
    """
    found = session.ask(lambda admin: _explained(admin, locality, model, objective or ""))
    if as_json:
        print_json(found)
    else:
        print_explanation(found, str(locality))


async def _explained(admin: AdminClient, locality: Locality, model: str, objective: str) -> Record:
    from nearmesh.cli import records

    message = await admin.explain(
        model,
        locality.region,
        objective=objective,
        site=locality.site,
        latitude=locality.latitude,
        longitude=locality.longitude,
    )
    found = records.route(message)
    rows = await _accuracy(admin, model)
    where = (found["client_region"], found["objective"])
    found["accuracy"] = [row for row in rows if (row["client_region"], row["objective"]) == where]
    return found


async def _accuracy(admin: AdminClient, model: str) -> list[Record]:
    """None where nobody counts: a node that explains from its snapshot, or a control plane that does not lead."""
    from nearmesh.cli import records
    from nearmesh.errors import NotLeader, Unsupported

    try:
        return [records.accuracy(found) for found in await admin.accuracy(model)]
    except (NotLeader, Unsupported):
        return []


@route.command()
@click.argument("model", metavar="MODEL", required=False)
@json_option
@pass_session
def accuracy(session: Session, model: str | None, as_json: bool) -> None:
    """How right predictions were of late.

    For each client region and objective, of MODEL or of all models, and apart for what gateways and what clients say:
    how many calls were late, and how many took no longer than the predicted 50th, 95th and 99th percentile. What was
    ten minutes ago counts half.
    """
    from nearmesh.cli import records

    found = [records.accuracy(row) for row in session.ask(lambda admin: admin.accuracy(model or ""))]
    if as_json:
        print_json(found)
    else:
        print_accuracy(found)


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
