"""`nearmesh model quantize` and `evaluate`: make a package's variants, see what they are worth. It takes no mesh."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.output import NOTHING, Number, console, print_json, print_table, size
from nearmesh.cli.report_table import print_report
from nearmesh.cli.session import Failure, json_option

if TYPE_CHECKING:
    from nearmesh.packaging.quantize import Made

_folder = click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.command()
@_folder
@click.option("--variant", "names", multiple=True, help="Only this one; may be repeated. Default: all.")
@json_option
def quantize(folder: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Make the variants that the [[quantize]] sections of the package in FOLDER describe.

    What is made is kept in the cache, where `publish` and `evaluate` find it, and is made again only when what it is
    made from changes.
    """
    from nearmesh.package import load
    from nearmesh.packaging.quantize import make
    from nearmesh.packaging.sources import default_cache

    package = load(folder)
    with console(err=True).status(f"making variants of {package.name}"):
        found = list(make(package, folder, default_cache(), only=names))
    if as_json:
        print_json([_record(made) for made in found])
        return
    empty = "model.toml has no [[quantize]]: nothing to make"
    rows = [_row(_record(made)) for made in found]
    print_table(("variant", "made from", "how", Number("size"), "where"), rows, empty=empty)


def _record(made: Made) -> dict[str, Any]:
    return {
        "variant": made.variant.name,
        "step": made.variant.step,
        "of": made.of,
        "kind": made.kind,
        "path": str(made.path) if made.path else None,
        "size_bytes": made.path.stat().st_size if made.path else None,
        "skipped": made.skipped,
    }


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    name = f"{record['step']}:{record['variant']}" if record["step"] else record["variant"]
    how_large = size(record["size_bytes"]) if record["size_bytes"] is not None else NOTHING
    return (name, record["of"], record["kind"], how_large, record["path"] or record["skipped"])


@click.command()
@_folder
@click.option("--variant", "names", multiple=True, help="Only this one, beside the reference; may be repeated.")
@json_option
def evaluate(folder: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Try every variant of the package in FOLDER on its evaluation set, as a node would run it.

    Shows the metric, how often each says what the reference says, its size, how fast it is on this machine, and whether
    it may be published. Ends with exit code 1 if one may not.
    """
    import json

    from nearmesh.package import load
    from nearmesh.packaging.evaluate import Subject, evaluate, keep_report, report_path
    from nearmesh.packaging.quantize import make
    from nearmesh.packaging.sources import default_cache

    package = load(folder)
    to_make = [name for name in names if name in {made.variant for made in package.quantize}]
    with console(err=True).status(f"making variants of {package.name}") as status:
        made = list(make(package, folder, default_cache(), only=to_make)) if to_make or not names else []
        subject = Subject(package=package, folder=folder, cache=default_cache(), made=made)
        report = evaluate(subject, only=names, on_variant=lambda label: status.update(f"trying {label}"))
    if not names:
        keep_report(report_path(subject), report)
    record = json.loads(report.to_bytes())
    if as_json:
        print_json(record)
    else:
        print_report(record)
    if report.failed:
        raise Failure("; ".join(f"{variant.label} may not be published: {variant.why}" for variant in report.failed))
