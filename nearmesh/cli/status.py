"""`nearmesh status`: the mesh on one screen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from nearmesh.cli.controlplane import print_control_planes
from nearmesh.cli.model_tables import print_models
from nearmesh.cli.node import print_nodes
from nearmesh.cli.output import NOTHING, Number, ms, print_json, print_table
from nearmesh.cli.route import choice, client_regions
from nearmesh.cli.route_tables import split
from nearmesh.cli.session import Session, json_option, pass_session
from nearmesh.routing import format_usd

if TYPE_CHECKING:
    from nearmesh.cli.records import Record
    from nearmesh.client.admin import AdminClient


@click.command()
@json_option
@pass_session
def status(session: Session, as_json: bool) -> None:
    """The mesh on one screen: nodes, models, and who answers each region under each model's own objective."""
    found = session.ask(_look)
    if as_json:
        print_json(found)
        return
    if len(found["control_planes"]) > 1:
        print_control_planes(found["control_planes"], title="Control planes")
        click.echo()
    print_nodes(found["nodes"], title="Nodes")
    click.echo()
    print_models(found["models"], title="Models")
    click.echo()
    rows = [_route_row(chosen) for chosen in found["routes"]]
    columns = ("client region", "model", "node", "region", Number("total p95, ms"), Number("USD per 1,000"), "why")
    print_table(columns, rows, title="Routes", empty="no model is deployed, or no node has joined")


async def _look(admin: AdminClient) -> Record:
    from nearmesh.cli import records

    control_planes, nodes, models, regions = await asyncio.gather(
        admin.control_planes(), admin.nodes(), admin.models(), client_regions(admin)
    )
    deployed = [model.name for model in models if model.deployments]
    pairs = [(region, name) for region in regions for name in deployed]
    routes = await asyncio.gather(*(choice(admin, name, region) for region, name in pairs))
    return {
        "control_planes": [records.control_plane(one) for one in control_planes],
        "nodes": [records.node(node) for node in nodes],
        "models": [records.model(model) for model in models],
        "routes": routes,
    }


def _route_row(chosen: Record) -> tuple[str, ...]:
    place = (chosen["client_region"], chosen["model"])
    if chosen["node"] is None:
        return (*place, *[NOTHING] * 4, "no node serves it")
    prices = (ms(chosen["total_ms_p95"]), format_usd(chosen["usd_per_1000"]))
    return (*place, split(chosen["shares"]), chosen["region"], *prices, chosen["why"])
