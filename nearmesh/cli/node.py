"""`nearmesh node`: join machines, take them out of service, price them."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.output import NOTHING, Number, ago, console, moment, note, print_json, print_table
from nearmesh.cli.price import Duration
from nearmesh.cli.session import Failure, Session, json_option, pass_session
from nearmesh.routing import format_usd

if TYPE_CHECKING:
    from nearmesh.cli.records import Record
    from nearmesh.client.admin import AdminClient
    from nearmesh.v1 import admin_pb2

COLUMNS = (
    "node",
    "kind",
    "site",
    "region",
    "state",
    "last seen",
    Number("ready replicas"),
    Number("USD per hour"),
    "hardware",
)

_undo = click.option("--undo", is_flag=True, help="Take it back.")


@click.group()
def node() -> None:
    """Join machines, look after them, price them."""


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--site", required=True, help="The place it stands in.")
@click.option("--region", required=True, help="As the clouds name it, such as europe-west1.")
@click.option("--kind", type=click.Choice(("node", "gateway")), default="node", show_default=True)
@click.option("--hours", type=click.FloatRange(0, 168, min_open=True), default=1.0, show_default=True)
@pass_session
def token(session: Session, name: str, site: str, region: str, kind: Any, hours: float) -> None:
    """Print the token with which a machine joins.

    It lets one machine join once, as NODE at that site and region. The token alone goes to stdout.
    """
    made = session.ask(lambda admin: admin.join_token(name, site, region, kind=kind, lifetime_s=3600 * hours))
    click.echo(made.token)
    start = "nearmesh-agent --data DIR --token" if kind == "node" else "nearmesh gateway run --config FILE --token"
    note(f"For {kind} {name} alone, once, within {hours:g} h. On that machine: {start} TOKEN")


@node.command("list")
@json_option
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """Every node and gateway."""
    from nearmesh.cli import records

    found = [records.node(message) for message in session.ask(lambda admin: admin.nodes())]
    if as_json:
        print_json(found)
    else:
        print_nodes(found)


def print_nodes(found: list[Record], *, title: str = "") -> None:
    """The table of nodes and gateways."""
    now_s = time.time()
    empty = "no node has joined yet: `nearmesh node token` makes the token for the first"
    columns: tuple[str, ...] = COLUMNS
    rows = [_row(record, now_s) for record in found]
    if any(record["vectors"] for record in found):
        columns = (*COLUMNS, "vectors")
        rows = [(*row, _vectors(record["vectors"])) for row, record in zip(rows, found, strict=True)]
    print_table(columns, rows, title=title, empty=empty)


def _vectors(record: Record | None) -> str:
    """What a node keeps of them, or why it cannot be asked."""
    if record is None:
        return NOTHING
    return record["detail"] or f"{record['rows']:,} in {record['collections']}"


def _row(record: Record, now_s: float) -> tuple[str, ...]:
    place = (record["node"], record["kind"], record["site"], record["region"], record["state"])
    seen = ago(record["last_seen_s"], now_s)
    if record["kind"] == "gateway":
        return (*place, seen, NOTHING, NOTHING, NOTHING)
    return (
        *place,
        seen,
        str(record["ready_replicas"]),
        format_usd(record["usd_per_hour"]),
        record["hardware"] or NOTHING,
    )


@node.command()
@click.argument("name", metavar="NODE")
@_undo
@click.option("--wait", is_flag=True, help="Until nothing is under way on it any more, sequences included.")
@click.option(
    "--timeout", "limit_s", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True, help="Seconds."
)
@json_option
@pass_session
def drain(session: Session, name: str, undo: bool, wait: bool, limit_s: float, as_json: bool) -> None:
    """Take NODE out of the routes.

    It answers what it has begun, lets its sequences end, and refuses what is new; its process stays.
    """
    if undo and wait:
        raise click.UsageError("--wait is for a drain, --undo takes it back at once")
    found = session.ask(lambda admin: admin.drain(name, undo=undo))
    if wait:
        from nearmesh.cli.drain import said

        found = session.ask(lambda admin: _drained(admin, name, limit_s))
        _say(found, said(found), as_json)
    else:
        _say(found, f"{name} is back in the routes" if undo else f"{name} gets no new requests", as_json)


async def _drained(admin: AdminClient, name: str, limit_s: float) -> admin_pb2.Node:
    from nearmesh.cli.drain import follow, said

    with console(err=True).status(f"draining {name}") as status:
        return await follow(admin, name, limit_s=limit_s, on_progress=lambda node: status.update(said(node)))


def _say(found: admin_pb2.Node, sentence: str, as_json: bool) -> None:
    """The node as it is now: for programs, or in words."""
    from nearmesh.cli import records

    if as_json:
        print_json(records.node(found))
    else:
        click.echo(sentence)


@node.command()
@click.argument("name", metavar="NODE")
@_undo
@json_option
@pass_session
def cordon(session: Session, name: str, undo: bool, as_json: bool) -> None:
    """Give NODE no new versions.

    It goes on serving those it has.
    """
    found = session.ask(lambda admin: admin.cordon(name, undo=undo))
    said = f"{name} gets new versions again" if undo else f"{name} keeps its versions and gets no new ones"
    _say(found, said, as_json)


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_session
def remove(session: Session, name: str, yes: bool, as_json: bool) -> None:
    """Put NODE out of the mesh for good.

    Its certificate is refused everywhere from now on.
    """
    if not yes:
        _ask_whether_to_remove(name)
    found = session.ask(lambda admin: admin.remove(name))
    _say(found, f"{name} is removed; the machine can join again under another name", as_json)


def _ask_whether_to_remove(name: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("without a terminal to ask at, `remove` needs --yes")
    if not click.confirm(f"Remove {name} for good? Its name cannot be used again.", err=True):
        raise Failure(f"{name} was not removed")


@node.command()
@click.argument("name", metavar="NODE")
@click.argument("per_hour", metavar="USD_PER_HOUR", type=click.FloatRange(0), required=False)
@click.option("--currency", metavar="CODE", default="", help="The price is in this one, such as EUR.")
@click.option("--for", "valid_for_s", type=Duration(), metavar="TIME", help="Such as 24h; then it ends by itself.")
@click.option("--unset", is_flag=True, help="Take the price back that was set before.")
@json_option
@pass_session
def price(
    session: Session,
    name: str,
    per_hour: float | None,
    currency: str,
    valid_for_s: float | None,
    unset: bool,
    as_json: bool,
) -> None:
    """Say what an hour of NODE costs.

    It wins over a feed's price and over the one in the node's own configuration. `nearmesh price list` shows all.
    """
    if unset and (per_hour is not None or currency or valid_for_s):
        raise click.UsageError("--unset takes the price back; a price, --currency or --for do not go with it")
    if unset:
        found = session.ask(lambda admin: admin.unset_price(name))
    elif per_hour is None:
        raise click.UsageError("give USD_PER_HOUR, or --unset to take the price back")
    else:
        given: dict[str, Any] = {"currency": currency.upper(), "valid_for_s": valid_for_s or 0.0}
        found = session.ask(lambda admin: admin.set_price(name, per_hour, **given))
    whose = f", by the {found.price_source}'s word" if unset else ""
    until = f" until {moment(time.time() + valid_for_s)} UTC" if valid_for_s else ""
    _say(found, f"{name} costs {format_usd(found.usd_per_hour)} USD per hour{until}{whose}", as_json)
