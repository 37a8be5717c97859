"""`nearmesh token`: bearer tokens for people and apps."""

from __future__ import annotations

import click

from nearmesh.cli.output import note
from nearmesh.cli.session import Session, pass_session

# As `nearmesh.tokens` knows them; its module is too slow to import for a line of help.
ROLES = ("client", "data", "operator")


@click.group()
def token() -> None:
    """Bearer tokens for people and apps."""


@token.command()
@click.option("--subject", required=True, help="Who it speaks for; stands in the audit log.")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What it allows.")
@click.option("--days", type=click.FloatRange(0, 366, min_open=True), default=30.0, show_default=True)
@click.option("--namespace", default="", help="Whose vectors it reaches, and no others.  [default: as the role may]")
@pass_session
def issue(session: Session, subject: str, role: str, days: float, namespace: str) -> None:
    """Print a new token. It cannot be called back, so keep it short-lived and to yourself."""
    bound = {"namespace": namespace} if namespace else {}
    made = session.ask(lambda admin: admin.issue_token(subject, role, lifetime_s=86400 * days, **bound))
    click.echo(made.token)
    note(f"For {subject} as {role}{f' in namespace {namespace}' if namespace else ''}, {days:g} days.")
