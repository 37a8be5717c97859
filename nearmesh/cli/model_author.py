"""`nearmesh model init`, `check` and `schema`: making a package, before any mesh sees it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.fetching import fetch_bars
from nearmesh.cli.output import console, note, print_json, print_table, size
from nearmesh.cli.session import json_option

if TYPE_CHECKING:
    from nearmesh.packaging.check import Checked
    from nearmesh.packaging.init import Made


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="Of the model; by default that of the file, or of its folder.")
@click.option(
    "--into", type=click.Path(file_okay=False, path_type=Path), help="The package's folder; by default ./NAME."
)
@click.option(
    "--inputs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An .npz of arrays input.NAME for the warm-up, in place of made-up ones.",
)
@click.option("--force", is_flag=True, help="Write over files that are there.")
@json_option
def init(file: Path, name: str | None, into: Path | None, inputs: Path | None, force: bool, as_json: bool) -> None:
    """Make a package of the ONNX graph in FILE.

    Finds out inputs, outputs and the batch axis, and writes model.toml, the weights and a warm-up with what ONNX
    Runtime answers here. Licence and credit are left to be filled in.
    """
    from nearmesh.packaging.init import init as write

    with console(err=True).status(f"looking at {file}"):
        made = write(file, name=name, into=into, inputs=inputs, force=force)
    if as_json:
        print_json(_made_record(made))
        return
    click.echo(f"{made.folder} is the package {made.package.name}: {', '.join(made.files)}")
    _print_tensors(made)
    for hint in made.hints:
        note(f"Note: {hint}.")
    note(f"Now fill in {' and '.join(made.package.unfilled)} in {made.folder / 'model.toml'}, and then:")
    note(f"  nearmesh model check {made.folder}")


def _print_tensors(made: Made) -> None:
    rows = [
        (what, spec.name, spec.dtype, str(list(spec.shape)))
        for what, specs in (("input", made.package.inputs), ("output", made.package.outputs))
        for spec in specs
    ]
    print_table(("", "Name", "Type", "Shape"), rows)
    # Otherwise a note says why requests are served one by one.
    if most := made.package.batching.max_batch:
        click.echo(f"up to {most} rows share an engine call")


def _made_record(made: Made) -> dict[str, Any]:
    package = made.package
    return {
        "folder": str(made.folder),
        "name": package.name,
        "opset": made.opset,
        "inputs": [_tensor_record(spec) for spec in package.inputs],
        "outputs": [_tensor_record(spec) for spec in package.outputs],
        "max_batch": package.batching.max_batch,
        "files": list(made.files),
        "unfilled": list(package.unfilled),
        "hints": list(made.hints),
    }


def _tensor_record(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), "batch_axis": spec.batch_axis}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option
def check(folder: Path, as_json: bool) -> None:
    """Do what publishing FOLDER would do with what is given, but the upload.

    Fetches the weights, checks every file, and runs the warm-up on ONNX Runtime here. Of a package with [training] it
    says whether the parameters are in the graph. Variants that are made are left to `evaluate`. No mesh is needed.
    """
    from nearmesh.packaging.check import check as checked

    with fetch_bars(folder) as on_progress:
        found = checked(folder, on_progress=on_progress)
    if as_json:
        print_json(_checked_record(found))
    else:
        _print_checked(found)


def _print_checked(found: Checked) -> None:
    manifest, package = found.artifact.manifest, found.artifact.package
    click.echo(f"{package.name}@{package.version}: {size(manifest.size_bytes)}, {found.artifact.digest}")
    print_table(
        ("File", "Size", "Digest"), [(file.title, size(file.size_bytes), file.digest) for file in manifest.all_files]
    )
    if found.proven:
        click.echo(f"{', '.join(found.proven)}: the warm-up gives what it should")
    if package.training and package.trained:
        _print_training(found)
    for why in found.untried:
        note(f"Not tried here: {why}.")
    if package.unfilled:
        note(f"Before it may be published, fill in {' and '.join(package.unfilled)}.")


def _print_training(found: Checked) -> None:
    training, trained = found.artifact.package.training, found.artifact.package.trained
    assert training and trained
    names = f"{len(training.parameters)} parameters of {trained.name}"
    if found.trainable:
        click.echo(f"{names} are in the graph, {found.trainable:,} numbers: federated rounds can train them")
    else:
        note(f"Not looked at here: whether {names} are in the graph; that takes onnx: pip install 'nearmesh[build]'.")
    kept = ", ".join(file.title for file in found.artifact.manifest.workshop)
    click.echo(f"published for them, and pulled by no node: {kept}")


def _checked_record(found: Checked) -> dict[str, Any]:
    manifest, package = found.artifact.manifest, found.artifact.package
    return {
        "name": package.name,
        "version": package.version,
        "digest": found.artifact.digest,
        "size_bytes": manifest.size_bytes,
        "files": [
            {"name": file.title, "size_bytes": file.size_bytes, "digest": file.digest} for file in manifest.all_files
        ],
        "proven": list(found.proven),
        "untried": list(found.untried),
        "unfilled": list(package.unfilled),
        "training": _training_record(found) if package.training else None,
        "publishable": not package.unfilled,
    }


def _training_record(found: Checked) -> dict[str, Any]:
    training, trained = found.artifact.package.training, found.artifact.package.trained
    assert training and trained
    return {
        "recipe": training.recipe,
        "variant": trained.name,
        "parameters": list(training.parameters),
        "numbers": found.trainable,
        "not_on_nodes": [file.title for file in found.artifact.manifest.workshop],
    }


@click.command()
def schema() -> None:
    """Print the JSON schema of model.toml, for editors.

    Save it beside model.toml and begin that with the line `#:schema ./model.schema.json`.
    """
    from nearmesh.package.schema import FILE

    click.echo(FILE.read_text("utf-8"), nl=False)
