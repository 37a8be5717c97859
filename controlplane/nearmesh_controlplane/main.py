"""`nearmesh-controlplane`: run the control plane, or make the mesh's first tokens."""

from __future__ import annotations

import time
from pathlib import Path

import click
import uvloop

from nearmesh import __version__, config
from nearmesh.errors import MeshError
from nearmesh.process import configure_logging, stop_on_signals
from nearmesh.tokens import ROLES
from nearmesh_controlplane.config import MeshConfig
from nearmesh_controlplane.registry.authority import Authority


@click.group(invoke_without_command=True)
@click.option("--config", "path", type=click.Path(path_type=Path), required=True, help="The mesh.toml to run.")
@click.option("--log-level", default="info", show_default=True, help="debug, info, warning or error.")
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context, path: Path, log_level: str) -> None:
    """The control plane of a mesh: registry, routing, xDS and the catalog of models.

    Without a subcommand it serves until SIGTERM or Ctrl-C.
    """
    configure_logging(log_level)
    try:
        context.obj = config.load(MeshConfig, path)
        if context.invoked_subcommand is None:
            uvloop.run(_run(context.obj))
    except MeshError as error:
        raise click.ClickException(error.message) from None


async def _run(mesh: MeshConfig) -> None:
    # Not for a token or for --help: it takes most of a second to import.
    from nearmesh_controlplane.server import serve

    await serve(mesh, stop_on_signals())


@main.command()
@click.option("--subject", required=True, help="Who the token speaks for.")
@click.option("--role", type=click.Choice(ROLES), default="operator", show_default=True)
@click.option("--days", type=click.FloatRange(0, 366, min_open=True), default=30.0, show_default=True)
@click.option("--namespace", default="", help="Whose vectors it reaches, and no others.")
@click.pass_obj
def token(mesh: MeshConfig, subject: str, role: str, days: float, namespace: str) -> None:
    """Print a bearer token, made from the mesh's key on this machine: the way to the first operator."""
    authority = Authority.open(mesh.mesh, mesh.data / "authority")
    now_s, lifetime_s = time.time(), days * 86400
    click.echo(authority.issuer.access(subject, role, now_s=now_s, lifetime_s=lifetime_s, namespace=namespace))


@main.command()
@click.pass_obj
def ca(mesh: MeshConfig) -> None:
    """Print the mesh's CA certificate, which clients need to know the mesh by."""
    click.echo(Authority.open(mesh.mesh, mesh.data / "authority").ca_pem.decode(), nl=False)
