"""`nearmesh vectors`: what the nodes keep for retrieval, from making a collection to asking it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.output import NOTHING, Number, ago, moment, note, percent, print_facts, print_json, print_table, size
from nearmesh.cli.session import Session, json_option, pass_session
from nearmesh.cli.vectors_node import Target, ask, ask_collection, node_options

if TYPE_CHECKING:
    from nearmesh.cli.records import Record
    from nearmesh.client.vectors import Collection

# name: its module, where it is not this one. Each is imported only when it runs.
ELSEWHERE = {
    "import": "vectors_import",
    "search": "vectors_ask",
    "retrieve": "vectors_ask",
    "migrate": "vectors_move",
    "reembed": "vectors_move",
}
METRICS, KINDS = ("cosine", "ip", "l2"), ("string", "int", "float", "bool")


class VectorCommands(click.Group):
    """Has some of its commands in other files."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *ELSEWHERE])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in ELSEWHERE:
            return super().get_command(context, name)
        module = importlib.import_module(f"nearmesh.cli.{ELSEWHERE[name]}")
        # `import` is no name for a function.
        found = getattr(module, f"{name}_" if name == "import" else name)
        assert isinstance(found, click.Command)
        return found


@click.group(cls=VectorCommands)
def vectors() -> None:
    """Collections of vectors and texts that nodes keep, and passages found in them by meaning and words."""


collection_argument = click.argument("name", metavar="COLLECTION")


def _field(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        name, _, kind = value.partition(":")
        if kind not in KINDS:
            raise click.BadParameter(f"{value!r} is not NAME:TYPE with one of {', '.join(KINDS)}, such as year:int")
        if name in found:
            raise click.BadParameter(f"field {name!r} is there twice")
        found[name] = kind
    return found


@vectors.command()
@collection_argument
@click.option("--embedder", default="", metavar="MODEL", help="A model of the node that makes vectors of texts.")
@click.option("--dimension", type=click.IntRange(1), help="Of vectors that you bring; an embedder has its own.")
@click.option("--metric", type=click.Choice(METRICS), default="cosine", show_default=True)
@click.option(
    "--field", "fields", multiple=True, callback=_field, metavar="NAME:TYPE", help="For filters; may be repeated."
)
@click.option("--replicate-to", multiple=True, metavar="SITE", help="It gets all that is written; may be repeated.")
@click.option("--region", "regions", multiple=True, help="Where its rows may be kept and asked from; may be repeated.")
@click.option(
    "--language", default="", help="Of its texts, such as german; none: words keep their endings.  [default: english]"
)
@click.option("--index-type", default="", help="As Milvus calls it.  [default: the best that it has]")
@click.option("--description", default="")
@node_options
@json_option
@pass_session
def create(session: Session, /, target: Target, name: str, dimension: int | None, as_json: bool, **given: Any) -> None:
    """Make a collection: of texts (--embedder), or of vectors that you bring (--dimension)."""
    if not dimension and not given["embedder"]:
        raise click.UsageError("say --embedder MODEL for texts, or --dimension N for vectors of your own")

    async def work(client: Any) -> Any:
        made = await client.create(name, namespace=target.namespace, dimension=dimension or 0, **given)
        return await made.describe()

    _show(ask(session, target, work), as_json)


@vectors.command("list")
@click.option("--all", "everything", is_flag=True, help="Of all namespaces, for operators.")
@node_options
@json_option
@pass_session
def list_(session: Session, /, target: Target, everything: bool, as_json: bool) -> None:
    """Collections of a node: their size, their recall, and how old what they have is."""
    import time

    from nearmesh.cli import vectors_records as records

    found = ask(session, target, lambda client: client.list("*" if everything else target.namespace))
    collections = [records.collection(one) for one in found.collections]
    uses = [records.use(one) for one in found.namespaces]
    if as_json:
        print_json({"collections": collections, "namespaces": uses})
        return
    now_s = time.time()
    columns = (
        "namespace",
        "collection",
        Number("rows"),
        Number("size"),
        Number("recall"),
        "written",
        "embedder",
        "state",
    )
    print_table(columns, [_row(one, now_s) for one in collections], empty="no collections; `nearmesh vectors create`")
    limited = [one for one in uses if one["max_rows"] or one["max_bytes"] or one["max_requests_per_second"]]
    for one in limited:
        note(_use(one))


def _row(one: Record, now_s: float) -> tuple[str, ...]:
    recall = NOTHING if one["recall"] is None else percent(one["recall"], digits=1)
    written = ago(one["written_at_s"], now_s)
    return (
        one["namespace"],
        one["collection"],
        f"{one['rows']:,}",
        size(one["bytes"]),
        recall,
        written,
        one["embedder"] or NOTHING,
        state(one),
    )


def state(one: Record) -> str:
    """What somebody should know of a collection, in a few words."""
    said = []
    if one["embedder_stale"]:
        said.append("another version of its embedder serves: `nearmesh vectors reembed`")
    if one["next_generation"] is not None:
        said.append(f"generation {one['next_generation_number']} has {percent(one['next_generation'])}")
    for replica in one["replicas"]:
        if not replica["connected"]:
            said.append(
                f"{replica['site']} is away ({replica['detail']})"
                if replica["detail"]
                else f"{replica['site']} is away"
            )
        elif replica["lag_rows"]:
            said.append(f"{replica['site']} lacks {replica['lag_rows']:,} rows, for {replica['lag_s']:.0f} s")
    return "; ".join(said) or "ok"


def _use(one: Record) -> str:
    parts = []
    if one["max_rows"]:
        parts.append(f"{one['rows']:,} of {one['max_rows']:,} vectors")
    if one["max_bytes"]:
        parts.append(f"{size(one['bytes'])} of {size(one['max_bytes'])}")
    if one["max_requests_per_second"]:
        parts.append(f"{one['requests_per_second']:g} of {one['max_requests_per_second']:g} requests per second")
    return f"namespace {one['namespace']}: {', '.join(parts)}"


@vectors.command()
@collection_argument
@node_options
@json_option
@pass_session
def show(session: Session, /, target: Target, name: str, as_json: bool) -> None:
    """Everything about one collection."""
    _show(ask_collection(session, target, name, lambda found: found.describe()), as_json)


def _show(message: Any, as_json: bool) -> None:
    from nearmesh.cli import vectors_records as records

    one = records.collection(message)
    if as_json:
        print_json(one)
        return
    waiting = f", {one['fresh_rows']:,} of them searched exactly until the index has them" if one["fresh_rows"] else ""
    embedder = f"{one['embedder']} {one['embedder_digest']}" if one["embedder"] else "none: vectors are brought"
    print_facts(
        [
            ("collection", f"{one['collection']} in namespace {one['namespace']}"),
            *([("description", one["description"])] if one["description"] else []),
            ("rows", f"{one['rows']:,}, {size(one['bytes'])}{waiting}"),
            ("vectors", f"{one['dimension']} numbers, {one['metric']}, generation {one['generation']}"),
            ("embedder", embedder),
            ("words", one["language"] or "unknown"),
            ("fields", ", ".join(f"{field}: {kind}" for field, kind in one["fields"].items()) or "none"),
            ("recall", "not measured yet" if one["recall"] is None else percent(one["recall"], digits=1)),
            ("searched by", one["served_by"]),
            ("created", f"{moment(one['created_at_s'])} at site {one['site']}"),
            ("written", moment(one["written_at_s"])),
            ("replicated to", ", ".join(one["replicate_to"]) or "no other site"),
            ("regions", ", ".join(one["regions"]) or "no rule"),
            ("state", state(one)),
        ]
    )


@vectors.command()
@collection_argument
@click.option("--filter", default="", metavar="EXPRESSION", help='Such as: lang == "en" and year >= 2020.')
@node_options
@json_option
@pass_session
def count(session: Session, /, target: Target, name: str, filter: str, as_json: bool) -> None:
    """How many rows a collection has, or a filter takes."""
    found = ask_collection(session, target, name, lambda docs: docs.count(filter))
    print_json({"rows": found}) if as_json else click.echo(found)


@vectors.command()
@collection_argument
@click.argument("ids", nargs=-1, required=True)
@click.option("--with-vectors", is_flag=True)
@node_options
@pass_session
def fetch(session: Session, /, target: Target, name: str, ids: tuple[str, ...], with_vectors: bool) -> None:
    """Rows by their IDS, as JSON, one a line."""
    from nearmesh.cli import vectors_records as records

    rows = ask_collection(session, target, name, lambda docs: docs.fetch(ids, with_vectors=with_vectors))
    for row in rows:
        print_json(records.row(row), indent=None)
    if len(rows) < len(set(ids)):
        note(f"{len(set(ids)) - len(rows)} of {len(set(ids))} are not there")


@vectors.command()
@collection_argument
@click.option("--id", "ids", multiple=True, help="May be repeated.")
@click.option("--filter", default="", metavar="EXPRESSION")
@click.option("--yes", is_flag=True, help="Do not ask.")
@node_options
@json_option
@pass_session
def delete(
    session: Session, /, target: Target, name: str, ids: tuple[str, ...], filter: str, yes: bool, as_json: bool
) -> None:
    """Delete rows: by --id, by --filter, or those of the ids that the filter takes."""
    if not ids and not filter.strip():
        raise click.UsageError("say which: --id or --filter; `nearmesh vectors drop` deletes the whole collection")
    if filter and not yes and not as_json:
        would = ask_collection(session, target, name, lambda docs: docs.delete(ids, filter=filter, dry_run=True))
        click.confirm(f"delete {would.deleted:,} rows?", abort=True, err=True)
    done = ask_collection(session, target, name, lambda docs: docs.delete(ids, filter=filter))
    if as_json:
        print_json({"deleted": done.deleted, "change": done.change})
    else:
        click.echo(f"{done.deleted:,} rows deleted")


@vectors.command()
@collection_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@node_options
@json_option
@pass_session
def drop(session: Session, /, target: Target, name: str, yes: bool, as_json: bool) -> None:
    """Delete a collection with all its rows, at every site that has it."""
    if not yes and not as_json:
        found = ask_collection(session, target, name, lambda docs: docs.describe())
        everywhere = {found.site, *found.replicate_to} if found.replicate_to else set()
        where = f", at {' and '.join(sorted(everywhere))}" if everywhere else ""
        click.confirm(f"drop {name} with {found.rows:,} rows{where}?", abort=True, err=True)
    rows = ask_collection(session, target, name, lambda docs: docs.drop())
    print_json({"rows": rows}) if as_json else click.echo(f"{name} is gone, with {rows:,} rows")


@vectors.command()
@collection_argument
@click.option("--description")
@click.option("--replicate-to", multiple=True, metavar="SITE", help="All sites that are to have it from now on.")
@click.option("--replicate-nowhere", is_flag=True)
@click.option("--region", "regions", multiple=True, help="All regions that it is bound to from now on.")
@click.option("--region-any", is_flag=True)
@node_options
@json_option
@pass_session
def update(
    session: Session,
    /,
    target: Target,
    name: str,
    description: str | None,
    replicate_to: tuple[str, ...],
    replicate_nowhere: bool,
    regions: tuple[str, ...],
    region_any: bool,
    as_json: bool,
) -> None:
    """Change a collection's description, the sites that it is replicated to, or the regions that it is bound to."""
    if (replicate_to and replicate_nowhere) or (regions and region_any):
        raise click.UsageError("--replicate-nowhere and --region-any go without --replicate-to and --region")
    sites = replicate_to or (() if replicate_nowhere else None)
    bound = regions or (() if region_any else None)
    if description is None and sites is None and bound is None:
        raise click.UsageError("say what: --description, --replicate-to, --replicate-nowhere, --region or --region-any")

    async def work(docs: Collection) -> Any:
        return await docs.update(description=description, replicate_to=sites, regions=bound)

    _show(ask_collection(session, target, name, work), as_json)


@vectors.command()
@collection_argument
@click.option("--prefix", default="", help="Only those whose names begin so.")
@node_options
@json_option
@pass_session
def sources(session: Session, /, target: Target, name: str, prefix: str, as_json: bool) -> None:
    """What has been imported, and how old it is."""
    import time

    from nearmesh.cli import vectors_records as records

    async def work(docs: Collection) -> list[Record]:
        return [records.source(one) async for one in docs.sources(prefix)]

    found = ask_collection(session, target, name, work)
    if as_json:
        print_json(found)
        return
    now_s = time.time()
    rows = [(one["source"], _parts(one), ago(one["written_at_s"], now_s)) for one in found]
    print_table(("source", Number("parts"), "written"), rows, empty="nothing has been imported")


def _parts(one: Record) -> str:
    stale = f" and {one['stale_parts']} old" if one["stale_parts"] else ""
    return f"{one['parts_here']} of {one['parts']}{stale}"


@vectors.command()
@collection_argument
@click.option("--id", default="", help="Of one deleted row.  [default: of the last deletes]")
@click.option("--most", type=click.IntRange(1, 1000), default=20, show_default=True)
@node_options
@json_option
@pass_session
def receipts(session: Session, /, target: Target, name: str, id: str, most: int, as_json: bool) -> None:
    """Which sites have taken which deletes, and when."""
    from nearmesh.cli import vectors_records as records

    found = ask_collection(session, target, name, lambda docs: docs.receipts(id, most=most))
    told = [records.receipt(one) for one in found]
    if as_json:
        print_json(told)
        return
    rows = [
        (one["id"], moment(one["deleted_at_s"]), site["site"], site["node"], moment(site["acknowledged_at_s"] or 0))
        for one in told
        for site in one["sites"]
    ]
    empty = f"no delete of row {id!r} is known; they are remembered for 90 days" if id else "nothing was deleted"
    print_table(("id", "deleted", "site", "node", "acknowledged"), rows, empty=empty)
