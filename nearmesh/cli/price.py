"""`nearmesh price`: what nodes and transfers cost, and by whose word."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.output import NOTHING, Number, console, moment, print_json, print_table
from nearmesh.cli.session import Session, json_option, pass_session
from nearmesh.routing import format_usd

if TYPE_CHECKING:
    from nearmesh.cli.records import Record

NODE_COLUMNS = (
    "node",
    "region",
    "machine type",
    Number("USD per hour"),
    "terms",
    "by",
    "until, UTC",
    "as given",
    "note",
)
TRANSFER_COLUMNS = ("from", "to", Number("USD per GB"), "by")

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[float]):
    """A time such as 90s, 30m, 24h or 7d, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value, flags=re.ASCII)
        seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
        if not seconds:
            self.fail(f"{value!r} is no time above 0; expected such as 90s, 30m, 24h or 7d", param, context)
        return seconds


@click.group()
def price() -> None:
    """What nodes and transfers cost, and by whose word.

    `nearmesh node price` sets the price of a node.
    """


@price.command("list")
@json_option
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """All prices.

    What every node costs, by whose word and until when; what transfers between regions cost; how the price feed does.
    """
    from nearmesh.cli import records

    found = records.prices(session.ask(lambda admin: admin.prices()))
    if as_json:
        print_json(found)
        return
    print_table(NODE_COLUMNS, map(_node_row, found["nodes"]), empty="no node has joined yet")
    if found["transfers"]:
        rows = [
            (t["from_region"], t["to_region"], format_usd(t["usd_per_gb"]), t["source"]) for t in found["transfers"]
        ]
        print_table(TRANSFER_COLUMNS, rows, title="Transfers")
    _print_feed(found["feed"])


def _node_row(record: Record) -> tuple[str, ...]:
    return (
        record["node"],
        record["region"],
        record["machine_type"] or NOTHING,
        format_usd(record["usd_per_hour"]),
        "spot" if record["spot"] else "on demand",
        record["source"],
        moment(record["valid_until_s"]),
        f"{record['amount']:g} {record['currency']}" if record["currency"] else NOTHING,
        record["note"] or NOTHING,
    )


def _print_feed(feed: Record) -> None:
    screen = console()
    if not feed["source"]:
        screen.print("no price feed: [prices] in mesh.toml names one", style="dim")
        return
    read = f"{feed['prices']} prices, read {moment(feed['read_at_s'])} UTC" if feed["read_at_s"] else "never read"
    screen.print(f"feed {feed['source']}: {read}")
    if feed["error"]:
        screen.print(f"not taken over since: {feed['error']}", style="red")


@price.command()
@click.argument("from_region", metavar="FROM_REGION")
@click.argument("to_region", metavar="TO_REGION")
@click.argument("usd_per_gb", metavar="USD_PER_GB", type=click.FloatRange(0), required=False)
@click.option("--unset", is_flag=True, help="Take the price back that was set before.")
@json_option
@pass_session
def transfer(
    session: Session, from_region: str, to_region: str, usd_per_gb: float | None, unset: bool, as_json: bool
) -> None:
    """Say what it costs to move data between regions.

    Either region may be '*', any other one; the most specific price counts. Without one, moving data is free.
    """
    from nearmesh.cli import records

    if unset == (usd_per_gb is not None):
        raise click.UsageError("give USD_PER_GB, or --unset to take the price back")
    if usd_per_gb is None:
        message = session.ask(lambda admin: admin.unset_transfer_price(from_region, to_region))
    else:
        wanted = usd_per_gb
        message = session.ask(lambda admin: admin.set_transfer_price(from_region, to_region, wanted))
    if as_json:
        print_json(records.transfer_price(message))
    else:
        click.echo(f"{from_region} to {to_region} costs {format_usd(message.usd_per_gb)} USD per GB")
