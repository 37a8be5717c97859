"""`nearmesh infer`: one inference from the command line, and its receipt beside what the router predicted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli.output import Number, ms, note, percent, print_facts, print_json, print_table
from nearmesh.cli.route import objective_option
from nearmesh.cli.route_tables import decision, terms
from nearmesh.cli.session import Session, json_option, pass_session
from nearmesh.routing import format_usd

if TYPE_CHECKING:
    from nearmesh.cli.images import Scaling
    from nearmesh.cli.model_metadata import Metadata
    from nearmesh.cli.records import Record
    from nearmesh.client import Mesh
    from nearmesh.client.receipt import Answer, Attempt, Receipt
    from nearmesh.routing import Objective
    from nearmesh.tensors import Array
    from nearmesh.v1 import route_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    model: str
    region: str
    inputs: dict[str, str]
    # Output name and the file to keep it in.
    outputs: dict[str, Path]
    objective: Objective | None
    deadline_s: float | None
    scaling: Scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answer, and what the router said of every node just before."""

    answer: Answer
    route: Record


def _numbers(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number, nor numbers with commas between") from None


def _size(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    width, _, height = value.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise click.BadParameter(f"{value!r} is not WIDTHxHEIGHT, such as 640x480")
    return int(width), int(height)


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    metavar="NAME=FILE|VALUE",
    help=".npy, .npz, .json, an image, or a number or JSON array written out; for text inputs any file or text.",
)
@click.option("--from", "region", metavar="REGION", help="Where you are; in a local mesh one of its client regions.")
@objective_option
@click.option("--deadline-ms", type=click.FloatRange(0, min_open=True), help="How long to wait, failover included.")
@click.option("--output", "outputs", multiple=True, metavar="NAME=FILE", help="Keep an output as .npy or .json.")
@click.option("--labels", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="One label a line.")
@click.option(
    "--mean", callback=_numbers, metavar="M[,M,M]", help="Images: taken from pixels that were scaled to 0..1."
)
@click.option("--std", callback=_numbers, metavar="S[,S,S]", help="Images: what pixels are divided by after that.")
@click.option("--resize", callback=_size, metavar="WIDTHxHEIGHT", help="Images: instead of the size they have.")
@json_option
@pass_session
def infer(session: Session, /, model: str, labels: Path | None, as_json: bool, **given: Any) -> None:
    """Ask MODEL, print its answer, who gave it, how fast, and at what price."""
    from nearmesh.package import read_labels

    request = _request(session, model, **given)
    names = read_labels(labels) if labels else ()
    result = asyncio.run(_ask(session, request))
    if as_json:
        # Indented, a tensor would take a line for each number.
        print_json(_record(request, result, names), indent=None)
    else:
        _print(request, result, names)


def _request(
    session: Session,
    model: str,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    region: str | None,
    objective: Objective | None,
    deadline_ms: float | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    resize: tuple[int, int] | None,
) -> Request:
    from nearmesh.cli.images import Scaling
    from nearmesh.cli.tensor_input import split

    regions = [region] if region else session.place.regions
    if not regions:
        raise click.UsageError("--from REGION is needed: where the request comes from decides who answers")
    return Request(
        model=model,
        region=regions[0],
        inputs=split(inputs, "--input"),
        outputs={name: _checked(Path(file)) for name, file in split(outputs, "--output").items()},
        objective=objective,
        deadline_s=deadline_ms / 1000 if deadline_ms else None,
        scaling=Scaling(mean=mean or (0.0,), std=std or (1.0,), size=resize),
    )


def _checked(path: Path) -> Path:
    if path.suffix not in (".npy", ".json"):
        raise click.UsageError(f"--output {path}: an output is kept as .npy or .json")
    return path


async def _ask(session: Session, request: Request) -> Result:
    """The route first, as it was when the request left; then the request."""
    from nearmesh.cli import records
    from nearmesh.cli.model_metadata import ask
    from nearmesh.client import connect

    place = session.place
    async with connect(
        control_plane=place.control_plane, ca=place.ca_pem, token=place.token, region=request.region
    ) as mesh:
        route = await _decision(session, mesh, request)
        arrays = _arrays(request, await ask(place, route))
        # So that the time on the receipt is that of an inference, not of opening a connection as well.
        await mesh.warm(request.model, objective=request.objective, deadline_s=request.deadline_s)
        answer = await mesh.infer(request.model, arrays, objective=request.objective, deadline_s=request.deadline_s)
    _keep(request, answer)
    return Result(answer=answer, route=records.route(route))


async def _decision(session: Session, mesh: Mesh, request: Request) -> route_pb2.Route:
    """The control plane's; while it is away, the one that the SDK goes by."""
    from nearmesh.errors import DeadlineExceeded, Unreachable

    try:
        async with session.dial() as admin:
            return await admin.explain(request.model, request.region, objective=request.objective or "")
    except (Unreachable, DeadlineExceeded) as error:
        found = await mesh.explain(request.model, objective=request.objective, deadline_s=request.deadline_s)
        note(f"going by the routes that it signed last: {error.message}")
        return found


def _arrays(request: Request, metadata: Metadata) -> dict[str, Array]:
    from nearmesh.cli.tensor_input import pick, read_input

    for name in request.outputs:
        pick(name, metadata.outputs, "output")
    return {
        name: read_input(text, pick(name, metadata.inputs, "input"), request.scaling)
        for name, text in request.inputs.items()
    }


def _keep(request: Request, answer: Answer) -> None:
    import json

    import numpy as np

    from nearmesh.cli.answer_text import nested
    from nearmesh.errors import InvalidInput

    for name, path in request.outputs.items():
        array = answer[name]
        if path.suffix == ".json":
            path.write_text(json.dumps(nested(array)), "utf-8")
        elif array.dtype.kind == "O":
            raise InvalidInput(f"output {name!r} is BYTES, which .npy cannot hold; name a .json file")
        else:
            np.save(path, array, allow_pickle=False)


# For programs.


def _record(request: Request, result: Result, labels: Sequence[str]) -> Record:
    from nearmesh.cli.answer_text import to_json

    answer = result.answer
    return {
        "model": answer.model,
        "version": answer.version,
        "client_region": request.region,
        "outputs": {name: to_json(array, labels) for name, array in answer.items()},
        "receipt": _receipt_record(answer.receipt),
        "route": result.route,
    }


def _receipt_record(receipt: Receipt) -> Record:
    import dataclasses

    return dataclasses.asdict(receipt)


# For people.


def _print(request: Request, result: Result, labels: Sequence[str]) -> None:
    from nearmesh.cli.answer_text import describe

    answer, receipt = result.answer, result.answer.receipt
    for name, array in answer.items():
        click.echo(describe(name, array, labels))
    click.echo()
    node = f"{receipt.node} at {receipt.site}, {receipt.region}"
    expected = f"{percent(receipt.prediction.p_in_time, digits=1)} were expected"
    facts = [
        ("model", f"{answer.model}@{answer.version}, {receipt.variant}{f', of run {receipt.run}' * bool(receipt.run)}"),
        ("answered by", f"{node}, for a client in {request.region}"),
        ("objective", f"{result.route['objective']}, decision {decision(result.route)}"),
        ("price", _price(receipt.usd_per_1000, result, receipt.node)),
        ("why", receipt.why),
        ("placed here", f"{percent(receipt.share)} of the requests from {request.region}"),
        ("in time", f"{expected} within {ms(result.route['deadline_ms'])} ms"),
        *_others(result),
        ("hedged", "yes, the first node was slow and a second one was asked" if receipt.hedged else "no"),
        *((_label(a), f"{a.node} after {ms(a.ms)} ms: {a.error}") for a in receipt.attempts if a.error),
    ]
    print_facts(facts)
    click.echo()
    levels = [Number(f"predicted {level}") for level in ("p50", "p95", "p99")]
    print_table(("time, ms", *levels, Number("actual")), _times(receipt))


def _price(usd_per_1000: float, result: Result, node: str) -> str:
    said = next((terms(c) for c in result.route["candidates"] if c["node"] == node), "")
    return f"{format_usd(usd_per_1000)} USD per 1,000{said and f' ({said})'}"


def _label(attempt: Attempt) -> str:
    """A node that another one was faster than did not fail."""
    from nearmesh.client.receipt import BESIDE

    return "asked as well" if attempt.error == BESIDE else "failed"


def _others(result: Result) -> list[tuple[str, str]]:
    """The next best node, with its price and the reason why it was not the best."""
    others = [c for c in result.route["candidates"] if c["node"] != result.answer.receipt.node and c["ready"]]
    if not others:
        return []
    next_best = others[0]
    price = _price(next_best["usd_per_1000"], result, next_best["node"])
    return [("runner-up", f"{next_best['node']}, {price}: {next_best['why']}")]


def _times(receipt: Receipt) -> list[tuple[str, ...]]:
    """What was expected of the node that answered as the choice was made, beside what happened."""
    told = receipt.prediction
    network = (told.network_ms_p50, told.network_ms_p95, told.network_ms_p99, receipt.network_ms)
    service = (told.service_ms_p50, told.service_ms_p95, told.service_ms_p99, receipt.queue_ms + receipt.compute_ms)
    total = (told.total_ms_p50, told.total_ms_p95, told.total_ms_p99, receipt.total_ms)
    rows = (("network", network), ("on the node", service), ("total", total))
    return [(name, *map(ms, times)) for name, times in rows]
