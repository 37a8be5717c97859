"""`nearmesh model`: publish and look at versions; what brings them to nodes is in `deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nearmesh.cli.deploy import Where, deploy, detach_option, roll_out, rollback, rollout, site_option, timeout_option
from nearmesh.cli.fetching import fetch_bars
from nearmesh.cli.idle import idle
from nearmesh.cli.model_author import check, init, schema
from nearmesh.cli.model_registry import export, key, pull, push, verify
from nearmesh.cli.model_tables import print_model, print_models
from nearmesh.cli.output import note, print_json, size
from nearmesh.cli.session import Session, json_option, pass_session
from nearmesh.cli.transfer_bar import transfer_bar
from nearmesh.cli.variants import evaluate, quantize

if TYPE_CHECKING:
    from nearmesh.packaging.build import Artifact


@click.group()
def model() -> None:
    """Make models of ONNX files, publish them, deploy them, roll them back."""


for _command in (init, check, schema, push, pull, export, verify, key, deploy, rollback, rollout, idle):
    model.add_command(_command)


model.add_command(quantize)
model.add_command(evaluate)


@model.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--deploy", "and_deploy", is_flag=True, help="Deploy it as well.")
@click.option("--without", multiple=True, metavar="VARIANT", help="Leave this variant out; may be repeated.")
@site_option
@detach_option
@timeout_option
@json_option
@pass_session
def publish(
    session: Session,
    folder: Path,
    and_deploy: bool,
    without: tuple[str, ...],
    site: tuple[str, ...],
    detach: bool,
    limit_s: float | None,
    as_json: bool,
) -> None:
    """Upload the package in FOLDER as a version.

    Fetches the weights that model.toml names, makes the variants that it describes, tries them on its evaluation set,
    and uploads what the control plane lacks: of a large file that it has in another version only the parts that are
    new. A variant that is not good enough is refused, with its figures. Versions never change: publishing the same
    files again changes nothing, and other files need another `version` in model.toml.
    """
    from nearmesh.cli import records

    if site and not and_deploy:
        raise click.UsageError("--site goes with --deploy")
    session.place  # noqa: B018 - a mesh that is not there is told before minutes of fetching
    artifact = _release(folder, without)
    name = f"{artifact.manifest.model}@{artifact.manifest.version}"
    with transfer_bar(f"uploading {name}") as on_progress:
        version = session.ask(lambda admin: admin.publish(artifact, on_progress))
    if as_json and not and_deploy:
        print_json(records.version(version))
    elif not as_json:
        sent = size(on_progress.done_bytes)
        click.echo(f"{name} is published: {size(version.size_bytes)}, of which {sent} were sent; {version.digest}")
    if and_deploy:
        where = Where(sites=site)
        roll_out(session, version.model, version.version, where, detach=detach, limit_s=limit_s, as_json=as_json)


def _release(folder: Path, without: tuple[str, ...]) -> Artifact:
    from nearmesh.packaging.release import release

    notes: list[str] = []
    with fetch_bars(folder) as bars:
        artifact = release(folder, without=without, on_step=bars.doing, on_note=notes.append, on_progress=bars)
    for said in notes:
        note(f"Note: {said}.")
    return artifact


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
