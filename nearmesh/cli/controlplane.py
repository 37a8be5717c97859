"""`nearmesh controlplane`: the control planes of a mesh, of which one leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from nearmesh.cli.output import moment, print_json, print_table
from nearmesh.cli.session import Session, json_option, pass_session

if TYPE_CHECKING:
    from nearmesh.cli.records import Record


@click.group()
def controlplane() -> None:
    """The control planes of the mesh."""


@controlplane.command(name="list")
@json_option
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """Every control plane, when it was seen last, and which of them leads.

    All of them answer; the leader decides, and nodes report to it.
    """
    from nearmesh.cli import records

    found = [records.control_plane(message) for message in session.ask(lambda admin: admin.control_planes())]
    if as_json:
        print_json(found)
        return
    print_control_planes(found)


def print_control_planes(found: Sequence[Record], title: str = "") -> None:
    rows = [
        (
            one["control_plane"],
            f"leads, term {one['term']}" if one["leader"] else "follows",
            one["public_address"],
            one["mesh_address"],
            one["http_address"],
            moment(one["seen_at_s"]),
        )
        for one in found
    ]
    print_table(("control plane", "role", "public", "mesh", "http", "last seen, UTC"), rows, title=title, empty="none")
