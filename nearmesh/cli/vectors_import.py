"""`nearmesh vectors import`: files and folders into a collection, as far as it does not have them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.output import console, note, print_facts, print_json
from nearmesh.cli.session import Failure, Session, json_option, pass_session
from nearmesh.cli.vectors_node import Target, ask_collection, node_options

if TYPE_CHECKING:
    from nearmesh.ingest.files import Found
    from nearmesh.ingest.importer import OnProgress, Wish
    from nearmesh.ingest.plan import Tally
    from nearmesh.ingest.sources import Rules

# As `nearmesh.ingest.files.Kind` has them; its package is not imported for a line of help.
KINDS = ("text", "markdown", "jsonl", "csv", "pdf")
# Of what could not be read, on a screen; `--json` has more.
SHOWN_PROBLEMS = 20


@click.command("import")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(exists=True, path_type=Path))
@click.option("--collection", required=True, metavar="NAME", help="Where the rows go; it must be there.")
@click.option("--as", "called", default="", metavar="NAME", help="In names of sources, instead of the folder's own.")
@click.option("--type", "kind", type=click.Choice(KINDS), help="Of files whose name does not tell.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out, such as 'drafts/*'; may be repeated.")
@click.option("--length", type=int, help="Characters of a part, at most; Chinese ones count as four.  [default: 1000]")
@click.option("--overlap", type=int, help="How much of a part is in the next one as well.  [default: 150]")
@click.option("--encoding", default="utf-8", show_default=True, help="Of texts that do not say.")
@click.option(
    "--text", multiple=True, metavar="COLUMN", help="Of records: the text; several are joined.  [default: text]"
)
@click.option("--id", "id_column", default="id", show_default=True, metavar="COLUMN", help="Of records: the name.")
@click.option("--vector", default="vector", show_default=True, metavar="COLUMN", help="Of records: their own vector.")
@click.option("--keep-gone", is_flag=True, help="Leave what is in the collection and not in the folder any more.")
@click.option("--delete-gone", is_flag=True, help="Delete it even if that is most of what there was.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@node_options
@json_option
@pass_session
def import_(
    session: Session,
    /,
    target: Target,
    paths: tuple[Path, ...],
    collection: str,
    called: str,
    kind: str | None,
    exclude: tuple[str, ...],
    keep_gone: bool,
    delete_gone: bool,
    dry_run: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Put the text, Markdown, JSON lines, CSV and PDF files at PATHs into a collection.

    Files are cut into parts by their structure and by length; each record of a table is a document of its own. What
    the collection has already is not sent, what is not in the folder any more is deleted, and what cannot be read is
    told at the end, while the rest is in (exit code 1). An import that broke off goes on with the same command.
    """
    from nearmesh.ingest.files import Kind, find
    from nearmesh.ingest.importer import Wish

    if keep_gone and delete_gone:
        raise click.UsageError("--keep-gone and --delete-gone say the opposite of each other")
    wish = Wish(rules=_rules(**reading), keep_gone=keep_gone, delete_gone=delete_gone, dry_run=dry_run)
    found = find(paths, called=called, kind=Kind(kind) if kind else None, exclude=exclude)
    begun_s = time.monotonic()
    tally = _run(session, target, collection, found, wish)
    if as_json:
        print_json(_record(collection, tally, wish, time.monotonic() - begun_s))
    else:
        _print(tally, wish, time.monotonic() - begun_s)
    if tally.problem_count or tally.withheld:
        raise Failure(_summary(tally, wish))


def _rules(
    length: int | None, overlap: int | None, encoding: str, text: tuple[str, ...], id_column: str, vector: str
) -> Rules:
    from nearmesh.ingest.records import RecordRules
    from nearmesh.ingest.sources import Rules
    from nearmesh.ingest.split import LENGTH, OVERLAP, Sizes

    length = LENGTH if length is None else length
    # Of a shorter part as much as of a usual one.
    overlap = length * OVERLAP // LENGTH if overlap is None else overlap
    records = RecordRules(text=text or ("text",), id=id_column, vector=vector)
    return Rules(sizes=Sizes(length, overlap), encoding=encoding, records=records)


def _run(session: Session, target: Target, collection: str, found: Found, wish: Wish) -> Tally:
    from nearmesh.ingest.importer import run

    with _bar(len(found.files)) as show:
        return ask_collection(session, target, collection, lambda docs: run(docs, found, wish, show))


@contextmanager
def _bar(files: int) -> Iterator[OnProgress]:
    """Files and rows, on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.fields[rows]} rows", markup=False),
        TimeElapsedColumn(),
    )
    screen = console(err=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("importing", total=files, rows=0)

        def show(tally: Tally) -> None:
            doing = f"waiting: {tally.waiting}" if tally.waiting else "importing"
            rows = tally.rows_written + tally.rows_unchanged
            bar.update(task, completed=tally.files_done, description=doing, rows=rows)

        yield show


# What came of it.


def _record(collection: str, tally: Tally, wish: Wish, took_s: float) -> dict[str, Any]:
    return {
        "collection": collection,
        "dry_run": wish.dry_run,
        "files": tally.files,
        "sources": {
            "new": tally.new,
            "changed": tally.changed,
            "unchanged": tally.unchanged,
            "empty": tally.empty,
            "deleted": tally.deleted,
            "withheld": tally.withheld,
        },
        "rows": {
            "written": tally.rows_written,
            "unchanged": tally.rows_unchanged,
            "deleted": tally.rows_deleted,
        },
        "problem_count": tally.problem_count,
        "problems": [
            {"source": problem.source, "position": problem.position, "message": problem.message}
            for problem in tally.problems
        ],
        "took_s": round(took_s, 3),
    }


def _print(tally: Tally, wish: Wish, took_s: float) -> None:
    sources = [
        f"{count} {word}"
        for word in ("new", "changed", "unchanged", "empty", "deleted")
        if (count := getattr(tally, word))
    ]
    rows = [f"{tally.rows_written} written", f"{tally.rows_unchanged} as they were", f"{tally.rows_deleted} deleted"]
    facts = [
        ("files", str(tally.files)),
        ("sources", ", ".join(sources) or "none"),
        ("rows", ", ".join(text for text in rows if not text.startswith("0 ")) or "none"),
        ("took", f"{took_s:.1f} s"),
    ]
    print_facts(facts)
    if wish.dry_run:
        note("a dry run: nothing was written or deleted")
    for problem in tally.problems[:SHOWN_PROBLEMS]:
        note(f"not read: {problem}")
    if tally.problem_count > SHOWN_PROBLEMS:
        note(f"not read: {tally.problem_count - SHOWN_PROBLEMS} more; --json tells the first {len(tally.problems)}")


def _summary(tally: Tally, wish: Wish) -> str:
    """What is left to do, in a line."""
    found = []
    if tally.problem_count:
        many = tally.problem_count if tally.problem_count > 1 else "one"
        found.append(f"{many} could not be read; the rest {'would be' if wish.dry_run else 'is'} in")
    if tally.withheld:
        found.append(
            f"{tally.withheld} sources are not there any more, most of what there was, and are left: if this is the "
            "folder that they came from, --delete-gone deletes them; if it is another one, name it with --as"
        )
    return "; ".join(found)
