"""`nearmesh vectors search` and `retrieve`: a collection is asked by a vector, or by a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nearmesh.cli.output import NOTHING, Number, ms, note, print_json, print_table
from nearmesh.cli.session import Session, json_option, pass_session
from nearmesh.cli.vectors_node import Target, ask_collection, node_options

if TYPE_CHECKING:
    from nearmesh.cli.records import Record
    from nearmesh.client.vectors import Reach

F = TypeVar("F", bound=Callable[..., Any])

# Of a passage on a screen.
SHOWN_CHARACTERS = 200


def ask_options(command: F) -> F:
    """What both have."""
    for option in reversed(
        (
            click.option("--k", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many."),
            click.option("--filter", default="", metavar="EXPRESSION", help='Such as: lang == "en" and year >= 2020.'),
            click.option(
                "--reach",
                type=click.Choice(("node", "site", "region", "mesh")),
                default="node",
                show_default=True,
                help="Who is asked: the node, or every node of its site, its region or the mesh.",
            ),
            click.option("--reach-name", default="", metavar="NAME", help="Another site or region than the node's."),
            click.option(
                "--within-ms",
                type=click.IntRange(1),
                help="Merge what has come by then.  [default: at the end of the call]",
            ),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("name", metavar="COLLECTION")
@click.argument("vector", metavar="FILE|JSON")
@ask_options
@click.option("--exact", is_flag=True, help="Compare with every row, whatever it takes.")
@node_options
@json_option
@pass_session
def search(
    session: Session,
    /,
    target: Target,
    name: str,
    vector: str,
    k: int,
    filter: str,
    exact: bool,
    as_json: bool,
    **far: Any,
) -> None:
    """The rows of COLLECTION nearest to a vector: an .npy file, or a JSON array written out."""
    from nearmesh.cli import vectors_records as records

    asked, reach = _vector(vector), _reach(**far)
    found = ask_collection(
        session, target, name, lambda docs: docs.search(asked, k=k, filter=filter, exact=exact, reach=reach)
    )
    told = records.search(found)
    if as_json:
        print_json(told)
        return
    _print(told["hits"], told["contributions"])
    note(f"{ms(told['took_ms'])} ms, by {told['way']}")


@click.command()
@click.argument("name", metavar="COLLECTION")
@click.argument("text")
@ask_options
@click.option(
    "--mode", type=click.Choice(("hybrid", "dense", "lexical")), help="By meaning, words, or both.  [default: hybrid]"
)
@click.option("--dense-weight", type=click.FloatRange(0, 1), help="Of the meaning, in a hybrid score.")
@click.option("--reranker", default="", metavar="MODEL", help="A model that puts the best in order once more.")
@click.option("--rerank-k", type=click.IntRange(1, 200), help="Passages that it scores.  [default: 3 times k]")
@node_options
@json_option
@pass_session
def retrieve(
    session: Session,
    /,
    target: Target,
    name: str,
    text: str,
    k: int,
    filter: str,
    mode: Any,
    dense_weight: float | None,
    reranker: str,
    rerank_k: int | None,
    as_json: bool,
    **far: Any,
) -> None:
    """The passages of COLLECTION that answer TEXT best."""
    from nearmesh.cli import vectors_records as records

    reach = _reach(**far)
    found = ask_collection(
        session,
        target,
        name,
        lambda docs: docs.retrieve(
            text,
            k=k,
            filter=filter,
            mode=mode,
            dense_weight=dense_weight,
            reranker=reranker,
            rerank_k=rerank_k or 0,
            reach=reach,
        ),
    )
    told = records.retrieved(found)
    if as_json:
        print_json(told)
        return
    _print(told["hits"], told["contributions"])
    timings = told["timings"]
    parts = ((part, timings[f"{part}_ms"]) for part in ("embed", "dense", "lexical", "rerank"))
    # A node that has no such collection itself has nothing to tell of its own.
    said = ", ".join(f"{part} {ms(took)}" for part, took in parts if took)
    note(f"{ms(timings['total_ms'])} ms: {said}" if said else f"{ms(timings['total_ms'])} ms")


def _reach(*, reach: Any, reach_name: str, within_ms: int | None) -> Reach | None:
    from nearmesh.client.vectors import Reach

    if within_ms and reach == "node":
        raise click.UsageError("--within-ms goes with --reach site, region or mesh")
    if reach_name and reach not in ("site", "region"):
        raise click.UsageError("--reach-name goes with --reach site or --reach region")
    return Reach(scope=reach, name=reach_name, within_ms=within_ms or 0) if reach != "node" else None


def _vector(text: str) -> Any:
    import json

    import numpy as np

    try:
        if text.lstrip().startswith("["):
            return json.loads(text)
        with Path(text).open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, RecursionError) as error:
        raise click.BadParameter(
            f"{text[:80]!r} is neither an .npy file nor a JSON array of numbers: {error}"
        ) from None


def _print(hits: Sequence[Record], contributions: Sequence[Record]) -> None:
    rows = [
        (f"{one['score']:.4f}", one["id"], one["source"] or NOTHING, one["site"], _shown(one["text"])) for one in hits
    ]
    print_table((Number("score"), "id", "source", "site", "text"), rows, empty="nothing was found")
    for one in contributions:
        if one["missing"]:
            note(f"{one['node']} at {one['site']} has not answered: {one['missing']}")


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"
