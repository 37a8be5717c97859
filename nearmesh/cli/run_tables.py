"""A federated run in tables: rounds by sites, the sites over all rounds, and what the gate saw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nearmesh.cli import run_records as records
from nearmesh.cli import run_words as words
from nearmesh.cli.output import NOTHING, Number, console, moment, print_table
from nearmesh.v1 import run_pb2

if TYPE_CHECKING:
    from rich.console import RenderableType

# With more sites a column for each does not fit on a screen; the lowest and the highest stand for them.
MOST_COLUMNS = 8
# Rounds that the changing picture shows; the rest has scrolled by.
LIVE_ROUNDS = 12

Row = tuple[str, ...]


def print_runs(found: list[run_pb2.Run]) -> None:
    rows = [
        (
            one.id,
            f"{one.model}@{one.parent_version}",
            one.asked.strategy or NOTHING,
            f"{len(words.counted(one))} of {one.asked.rounds}",
            records.state(one),
            _newest(one),
            one.version or NOTHING,
            moment(one.created_at_s),
            f"{one.ended_at_s - one.created_at_s:.0f}" if one.ended_at_s else NOTHING,
            one.actor,
            one.reason,
        )
        for one in found
    ]
    columns = ("run", "from", "strategy", Number("rounds"), "state", "metric", "made", "begun, UTC", Number("took, s"))
    print_table((*columns, "who", "reason"), rows, empty="no run yet: `nearmesh run start --model NAME` begins one")


def _newest(found: run_pb2.Run) -> str:
    metric = words.metric_of(found)
    if not metric or not found.rounds:
        return NOTHING
    return f"{metric} {words.figure(words.value_of(found, found.rounds[-1]))}"


def print_run(found: run_pb2.Run, *, facts: bool = True) -> None:
    """All of it, as `run show` and the end of `run start` print it."""
    screen = console()
    if facts:
        screen.print(words.headline(found), style="bold")
        for line in _facts(found):
            screen.print(line)
    if found.rounds:
        print_table(*_rounds_table(found), title=f"Rounds: {words.metric_of(found) or 'no metric'}")
        print_table(_SITE_COLUMNS, _site_rows(found), title="Sites, over all rounds")
    for line in words.troubles(found):
        screen.print(line, style="yellow")
    if found.HasField("gate"):
        rows = [(check.name, "passed" if check.passed else "REFUSED", check.detail) for check in found.gate.checks]
        print_table(("check", "", "figures"), rows, title="Gate")


def _facts(found: run_pb2.Run) -> Iterator[str]:
    asked = found.asked
    options = "".join(f", {name} {asked.strategy_options[name]:g}" for name in sorted(asked.strategy_options))
    strategy = "an app of its own" if found.own_app else f"{asked.strategy}{options}"
    rounds = words.how_many(asked.rounds)
    yield f"{rounds}, {strategy}, at least {asked.min_sites} sites within {asked.round_timeout_s:g} s each"
    if asked.largest_norm:
        yield f"updates longer than {asked.largest_norm:g} are shortened to it"
    if asked.privacy.noise_multiplier:
        noise, norm = asked.privacy.noise_multiplier, asked.privacy.clipping_norm
        yield f"noise of {noise:g} times the clipping norm, which is {norm:g}"
    if asked.HasField("schedule"):
        yield f"runs {', '.join(_schedule(asked.schedule))}"
    if found.epsilon:
        yield f"differential privacy so far: epsilon {found.epsilon:.2f} at delta {found.delta:g}"
    if found.resumed:
        yield f"taken up again {found.resumed} time{'s' if found.resumed != 1 else ''} after something had died"
    if found.version:
        yield f"published as {found.model}@{found.version}, {found.digest}"


def _schedule(found: run_pb2.Schedule) -> Iterator[str]:
    if found.window:
        yield f"from {found.window.replace('-', ' to ')} UTC"
    if found.idle_below:
        yield f"while sites serve with less than {100 * found.idle_below:.0f} % of themselves"
    if found.usd_per_hour_below:
        yield f"while nodes cost less than {found.usd_per_hour_below:g} USD per hour"


# Rounds by sites


def _rounds_table(found: run_pb2.Run) -> tuple[Row, list[Row]]:
    """Headings and rows."""
    nodes = words.nodes_of(found.rounds)
    wide = len(nodes) <= MOST_COLUMNS
    sites = nodes if wide else ["lowest", "highest", "counted"]
    late = any(one.late for one in found.rounds)
    headings = (
        Number("round"),
        Number("took, s"),
        Number("pooled"),
        *map(Number, sites),
        *((Number("late"),) if late else ()),
    )
    rows = []
    for one in found.rounds:
        cells = _cells(found, one, nodes) if wide else _extremes(found, one)
        took, pooled = one.ended_at_s - one.began_at_s, words.value_of(found, one)
        number = str(one.number) if one.number else f"0 ({found.parent_version})"
        rows.append((number, f"{took:.1f}", words.figure(pooled), *cells, *((str(one.late),) if late else ())))
    return headings, rows


def _cells(found: run_pb2.Run, one: run_pb2.Round, nodes: list[str]) -> list[str]:
    said = {site.node: words.cell(found, site) for site in one.sites}
    return [said.get(node, NOTHING) for node in nodes]


def _extremes(found: run_pb2.Run, one: run_pb2.Round) -> list[str]:
    counted = [site for site in one.sites if site.answer == records.COUNTED]
    values = [words.value_of(found, site) for site in counted]
    known = [value for value in values if value is not None]
    edges = [words.figure(min(known)), words.figure(max(known))] if known else [NOTHING, NOTHING]
    return [*edges, f"{len(counted)} of {len(one.sites)}"]


# The sites


_SITE_COLUMNS = (
    "node",
    "site",
    Number("examples"),
    Number("counted"),
    Number("trained, s"),
    Number("yielded, s"),
    Number("largest update"),
    Number("shortened"),
    Number("suspect"),
)


def _site_rows(found: run_pb2.Run) -> Iterator[Row]:
    for node in words.nodes_of(found.rounds):
        parts = [site for one in found.rounds for site in one.sites if site.node == node]
        trained = [site for one in words.counted(found) for site in one.sites if site.node == node]
        norm = max((site.update_norm for site in trained), default=0.0)
        yield (
            node,
            parts[-1].site,
            str(max(site.examples for site in parts)),
            f"{sum(site.answer == records.COUNTED for site in trained)} of {len(trained)}",
            f"{sum(site.train_s for site in trained):.1f}",
            f"{sum(site.yielded_s for site in trained):.1f}",
            f"{norm:.4g}" if norm else NOTHING,
            str(sum(site.clipped for site in trained)),
            str(sum(site.suspect for site in trained)),
        )


# Live


def picture(found: run_pb2.Run) -> RenderableType:
    """What it is at, its newest rounds, and what the gate saw so far."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown: list[RenderableType] = [Text(words.headline(found), style="bold")]
    if found.rounds:
        headings, rows = _rounds_table(found)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for heading in headings:
            table.add_column(str(heading), justify="right", overflow="fold")
        for row in rows[-LIVE_ROUNDS:]:
            table.add_row(*row)
        shown.append(table)
    if found.HasField("gate"):
        shown += [Text(line) for line in words.checks(found.gate)]
    return Group(*shown)
