"""`nearmesh client`: what apps need to find the mesh."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import click

from nearmesh.cli.output import note
from nearmesh.cli.session import Session, pass_session
from nearmesh.errors import AlreadyExists, MeshError

CA_NAME = "ca.pem"
# Nodes that a bootstrap file names, to be asked in turn while the control plane is away.
FALLBACK_NODES = 3


@click.group()
def client() -> None:
    """What apps need to find the mesh."""


@client.command()
@click.option("--region", required=True, help="Where the app runs, as the clouds name it.")
@click.option("--site", default="", help="The place in the region, if it has a name.")
@click.option("--out", type=click.Path(dir_okay=False, writable=True, path_type=Path), required=True)
@click.option("--with-ca", is_flag=True, help=f"Copy the CA as {CA_NAME} beside the file, to ship both together.")
@click.option("--days", type=click.FloatRange(0, 366, min_open=True), default=30.0, show_default=True)
@pass_session
def bootstrap(session: Session, region: str, site: str, out: Path, with_ca: bool, days: float) -> None:
    """Write the file that apps start from.

    gRPC's `xds:///` channels and the SDK both read it. The token in it is a client's: that of the local mesh, or your
    own if it is one, else a new one that lives --days. It names the nearest nodes too: an app that starts while the
    control plane is away finds its way through them.
    """
    from nearmesh.client.bootstrap import grpc_bootstrap, write_bootstrap
    from nearmesh.ids import check_label

    check_label("region", region)
    place = session.place
    token = _client_token(session, f"{region}-client", days)
    ca_path = _copy_ca(place.ca_pem, out.parent / CA_NAME) if with_ca else place.ca_path
    fallbacks = _nodes(session, region)
    write_bootstrap(out, grpc_bootstrap(place.control_plane, ca_path, token, region, site, fallbacks=fallbacks))
    click.echo(out)
    note(f"For `xds:///MODEL` channels: export GRPC_XDS_BOOTSTRAP={out.resolve()}")


def _nodes(session: Session, region: str) -> dict[str, str]:
    """The nodes nearest to the region: their ids by host:port, as clients there reach them."""
    try:
        routes = session.ask(lambda admin: admin.snapshot(region))
    except MeshError as error:
        note(f"The file names the control plane alone, since it did not say where its nodes are: {error.message}")
        return {}
    return {node.address: node.node for node in routes.table(region, "public").nearest[:FALLBACK_NODES]}


def _client_token(session: Session, subject: str, days: float) -> str:
    """A token to give away: never an operator's own."""
    place = session.place
    if place.client_token:
        return place.client_token
    if role_of(place.token) == "client":
        return place.token
    return session.ask(lambda admin: admin.issue_token(subject, "client", lifetime_s=86400 * days)).token


def role_of(token: str) -> str:
    """The role that a token claims, unchecked: the mesh checks it. Empty when it is no token."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError):
        return ""
    return str(claims.get("role", "")) if isinstance(claims, dict) else ""


def _copy_ca(pem: bytes, target: Path) -> Path:
    """Raises AlreadyExists rather than replace another mesh's CA."""
    if target.exists() and target.read_bytes() != pem:
        raise AlreadyExists(f"{target} is another CA; choose another folder for --out, or remove it")
    target.write_bytes(pem)
    return target
