"""`nearmesh vectors migrate` and `reembed`: long work on a node, watched to its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.output import changing_picture, note, print_json
from nearmesh.cli.session import Failure, Session, json_option, pass_session
from nearmesh.cli.vectors_node import Target, ask, ask_collection, node_options

if TYPE_CHECKING:
    from nearmesh.client.vectors import Collection, VectorClient


@click.command()
@click.argument("uri", metavar="URI")
@click.option("--token-variable", default="", metavar="NAME", help="Of the node's environment, with Milvus's token.")
@node_options
@json_option
@pass_session
def migrate(session: Session, /, target: Target, uri: str, token_variable: str, as_json: bool) -> None:
    """Move all vectors of a node to another Milvus: http://HOST:PORT, or a path for Milvus Lite.

    They are copied and verified while the old one serves, and then the node uses the new one. Asked again, it goes on.
    """

    async def work(client: VectorClient) -> Any:
        return await _watched(client.migrate(uri, token_variable=token_variable), _moved)

    last = ask(session, target, work)
    if last is None or last.phase != "done":
        raise Failure("the node ended the migration before it was done; asked again, it goes on")
    _end(last, f"the node's vectors are at {uri}", as_json)


@click.command()
@click.argument("name", metavar="COLLECTION")
@click.option("--embedder", default="", metavar="MODEL", help="Another one.  [default: its own, as it serves now]")
@click.option("--cancel", is_flag=True, help="End one that is under way; what serves goes on.")
@node_options
@json_option
@pass_session
def reembed(session: Session, /, target: Target, name: str, embedder: str, cancel: bool, as_json: bool) -> None:
    """Make a collection's vectors anew, by another embedder or its newest version.

    The old ones serve until all are there. Interrupted, it goes on at the node; asked again, this watches. Where a
    collection is replicated, each node makes its own anew: ask each of them (--node).
    """

    async def work(docs: Collection) -> Any:
        return await _watched(docs.reembed(embedder, cancel=cancel), _filled)

    last = ask_collection(session, target, name, work)
    if cancel:
        _end(last, f"{name} stays as it is", as_json)
        return
    if last is None or not last.switched:
        raise Failure("it has not switched yet and goes on at the node; asked again, this watches it")
    _end(last, f"{name} is searched by generation {last.generation}", as_json)


def _moved(progress: Any) -> str:
    return f"{progress.phase} {progress.collection} {progress.rows_done:,} of {progress.rows_total:,}"


def _filled(progress: Any) -> str:
    return f"generation {progress.generation} has {progress.rows_done:,} of {progress.rows_total:,} rows"


async def _watched(stream: AsyncIterator[Any], line: Callable[[Any], str]) -> Any:
    """The last word."""
    last = None
    with changing_picture() as show:
        async for last in stream:
            if show:
                show(line(last))
    return last


def _end(last: Any, said: str, as_json: bool) -> None:
    from nearmesh.cli import vectors_records as records

    if as_json:
        print_json(records.progress(last) if last is not None else None)
    else:
        note(said)
