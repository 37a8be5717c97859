"""`nearmesh model`: publish, look at, deploy and roll back model versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.fetching import fetch_bars
from nearmesh.cli.model_author import check, init, schema
from nearmesh.cli.model_registry import key, pull, push, verify
from nearmesh.cli.model_tables import print_model, print_models
from nearmesh.cli.output import console, note, print_json, size
from nearmesh.cli.session import Failure, Session, json_option, pass_session
from nearmesh.cli.transfer_bar import transfer_bar

if TYPE_CHECKING:
    from nearmesh.cli.rollout import Progress
    from nearmesh.client.admin import AdminClient
    from nearmesh.packaging.build import Artifact
    from nearmesh.v1 import catalog_pb2

_sites = click.option("--site", "sites", multiple=True, help="Only there; may be repeated. Default: every site.")
_wait = click.option("--wait/--no-wait", default=True, show_default=True, help="Until every live node there serves it.")
_timeout = click.option(
    "--timeout", "limit_s", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True, help="Seconds."
)


@click.group()
def model() -> None:
    """Make models of ONNX files, publish them, deploy them, roll them back."""


for _command in (init, check, schema, push, pull, verify, key):
    model.add_command(_command)


@model.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--deploy", "and_deploy", is_flag=True, help="Deploy it as well.")
@_sites
@_wait
@_timeout
@json_option
@pass_session
def publish(
    session: Session,
    folder: Path,
    and_deploy: bool,
    sites: tuple[str, ...],
    wait: bool,
    limit_s: float,
    as_json: bool,
) -> None:
    """Upload the package in FOLDER as a version.

    Fetches the weights that model.toml names, checks everything, and uploads what the control plane lacks: of a large
    file that it has in another version only the parts that are new. Versions never change: publishing the same files
    again changes nothing, and other files need another `version` in model.toml.
    """
    from nearmesh.cli import records

    if sites and not and_deploy:
        raise click.UsageError("--site goes with --deploy")
    session.place  # noqa: B018 - a mesh that is not there is told before minutes of fetching
    artifact = _build(folder)
    name = f"{artifact.manifest.model}@{artifact.manifest.version}"
    with transfer_bar(f"uploading {name}") as on_progress:
        version = session.ask(lambda admin: admin.publish(artifact, on_progress))
    if as_json and not and_deploy:
        print_json(records.version(version))
    elif not as_json:
        sent = size(on_progress.done_bytes)
        click.echo(f"{name} is published: {size(version.size_bytes)}, of which {sent} were sent; {version.digest}")
    if and_deploy:
        _deploy(session, lambda admin: admin.deploy(version.model, version.version, sites), wait, limit_s, as_json)


def _build(folder: Path) -> Artifact:
    from nearmesh.packaging.build import build

    with fetch_bars(folder) as on_progress:
        return build(folder, on_progress=on_progress)


@model.command("list")
@json_option
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """Every model, and how many nodes serve it."""
    from nearmesh.cli import records

    found = [records.model(message) for message in session.ask(lambda admin: admin.models())]
    if as_json:
        print_json(found)
    else:
        print_models(found)


@model.command()
@click.argument("name", metavar="NAME")
@json_option
@pass_session
def show(session: Session, name: str, as_json: bool) -> None:
    """One model in full.

    Its route policy, versions and deployments, and what each node makes of it, failures included.
    """
    from nearmesh.cli import records

    found = records.model(session.ask(lambda admin: admin.model(name)))
    if as_json:
        print_json(found)
    else:
        print_model(found)


@model.command()
@click.argument("target", metavar="NAME@VERSION")
@_sites
@_wait
@_timeout
@json_option
@pass_session
def deploy(session: Session, target: str, sites: tuple[str, ...], wait: bool, limit_s: float, as_json: bool) -> None:
    """Make a published version the wanted one.

    On each node the present version serves until the new one has proven itself.
    """
    name, _, version = target.partition("@")
    if not name or not version:
        raise click.UsageError(f"{target!r} is not NAME@VERSION; `nearmesh model show` lists a model's versions")
    _deploy(session, lambda admin: admin.deploy(name, version, sites), wait, limit_s, as_json)


@model.command()
@click.argument("name", metavar="NAME")
@_wait
@_timeout
@json_option
@pass_session
def rollback(session: Session, name: str, wait: bool, limit_s: float, as_json: bool) -> None:
    """Deploy the version before the present one.

    At the same sites; it is a deployment like any other.
    """
    _deploy(session, lambda admin: admin.rollback(name), wait, limit_s, as_json)


def _deploy(session: Session, start: Callable[[AdminClient], Any], wait: bool, limit_s: float, as_json: bool) -> None:
    """Starts a deployment and, if wanted, watches it. Raises Failure when a node cannot serve it."""
    from nearmesh.cli import records

    async def run(admin: AdminClient) -> tuple[catalog_pb2.Deployment, Progress | None]:
        deployment = await start(admin)
        return deployment, await _watch(admin, deployment, limit_s) if wait else None

    deployment, progress = session.ask(run)
    if as_json:
        print_json(records.deployment(deployment) | {"progress": _progress_record(progress)})
    else:
        click.echo(_said(deployment, progress))
    if progress and progress.failed:
        reasons = "; ".join(f"{node}: {why}" for node, why in progress.failed.items())
        raise Failure(f"{deployment.model}@{deployment.version} failed on {reasons}")


async def _watch(admin: AdminClient, deployment: catalog_pb2.Deployment, limit_s: float) -> Progress:
    from nearmesh.cli.rollout import follow

    with console(err=True).status("deploying") as status:

        def show_progress(found: Progress) -> None:
            waiting = ", ".join(f"{node} {state}" for node, state in found.pending.items())
            status.update(f"{len(found.serving)} of {found.expected} nodes serve it; {waiting}")

        return await follow(admin, deployment, limit_s=limit_s, on_progress=show_progress)


def _progress_record(progress: Progress | None) -> dict[str, Any] | None:
    if progress is None:
        return None
    return {
        "serving": list(progress.serving),
        "pending": dict(progress.pending),
        "failed": dict(progress.failed),
    }


def _said(deployment: catalog_pb2.Deployment, progress: Progress | None) -> str:
    name, where = f"{deployment.model}@{deployment.version}", ", ".join(deployment.sites) or "every site"
    if progress is None:
        return f"{name} is wanted at {where}; `nearmesh model show {deployment.model}` says how far it is"
    if not progress.expected:
        note("No live node there takes it at present; those that come will.")
        return f"{name} is wanted at {where}"
    return f"{name} is wanted at {where}; {len(progress.serving)} of {progress.expected} live nodes serve it"
