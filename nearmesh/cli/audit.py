"""`nearmesh audit`: what operators changed, newest first."""

from __future__ import annotations

import click

from nearmesh.cli.output import moment, print_json, print_table
from nearmesh.cli.session import Session, json_option, pass_session


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@json_option
@pass_session
def audit(session: Session, limit: int, as_json: bool) -> None:
    """What operators changed, newest first."""
    from nearmesh.cli import records

    found = [records.audit_entry(message) for message in session.ask(lambda admin: admin.audit(limit))]
    if as_json:
        print_json(found)
        return
    rows = [
        (moment(entry["at_s"]), *(entry[key] for key in ("actor", "action", "subject", "detail"))) for entry in found
    ]
    print_table(("when, UTC", "who", "did", "to", "detail"), rows, empty="nothing yet")
