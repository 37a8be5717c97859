"""The results as tables, and as a page that one can read: pure, from the JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.figures import Spread
from benchmarks.page import machine_lines
from benchmarks.serving.tables import number
from benchmarks.table import Table, markdown
from benchmarks.vectors.figures import Cell, Filled, Promise, Start, of, promises, spread
from benchmarks.vectors.systems import OURS, SYSTEMS

Results = Mapping[str, Any]

TITLE = "Vectors of a node, beside other stores"
# Others' share of a processor above which a measurement is called disturbed.
DISTURBED_CORES = 0.2
MISSING = "-"


def tables(results: Results) -> list[Table]:
    """Every table of a run."""
    found = [_promises(results)] if _has_ours(results) else []
    return [*found, _searches(results, False), _searches(results, True), _fills(results), _starts(results)]


def promised(results: Results) -> list[Promise]:
    """What this project promises of itself."""
    filled = next(one for one in _filled(results) if one.system == OURS)
    mine = [cell for cell in _cells(results) if cell.system == OURS]
    return promises(OURS, mine, filled, [one for one in _started(results) if one.system == OURS])


def _has_ours(results: Results) -> bool:
    rows = (*results["filled"], *results["cells"], *results["starts"])
    return not any(one["system"] == OURS for one in results["skipped"]) and any(r["system"] == OURS for r in rows)


def _promises(results: Results) -> Table:
    rows = tuple((p.what, p.promised, p.found, "yes" if p.held else "NO") for p in promised(results))
    return Table(title="What is promised", columns=("of this agent", "promised", "found", "held"), rows=rows)


def _searches(results: Results, filtered: bool) -> Table:
    callers = results["settings"]["callers"]
    alone, busy = min(callers), max(callers)
    cells, rows = _cells(results), []
    for one in _filled(results):
        first, many = of(cells, one.system, alone, filtered), of(cells, one.system, busy, filtered)
        figures = (
            *(spread(first, value) for value in ("p50_ms", "p95_ms", "p99_ms")),
            *(spread(many, value) for value in ("calls_per_s", "p95_ms")),
        )
        recall = one.filtered_recall if filtered else one.recall
        rows.append((one.system, f"{recall:.3f}", *map(_spread, figures)))
    columns = ("store", "recall@10", "p50 ms", "p95 ms", "p99 ms", f"per s, {busy} callers", "their p95 ms")
    title = "Searches with a filter that takes 10 % of the rows" if filtered else "Searches"
    return Table(title=title, columns=columns, rows=tuple(rows))


def _fills(results: Results) -> Table:
    rows = tuple(
        (
            one.system,
            f"{one.rows_per_s:,.0f}",
            str(one.batch),
            number(one.p50_ms),
            number(one.p95_ms),
            number(one.seen_s),
            number(one.finished_s),
            number(one.rest_s),
            f"{one.disk_bytes / 1e6:,.0f}",
        )
        for one in _filled(results)
    )
    columns = (
        "store",
        "rows per s",
        "rows of a write",
        "its p50 ms",
        "p95 ms",
        "seen after s",
        "in the index after s",
        "and at rest after s",
        "on disk MB",
    )
    return Table(title="Taking rows in", columns=columns, rows=rows)


def _starts(results: Results) -> Table:
    starts, rows = _started(results), []
    for name in dict.fromkeys(one.system for one in starts):
        figures = []
        for killed in (False, True):
            mine = [one for one in starts if (one.system, one.killed) == (name, killed)]
            for value in ("answered_s", "written_s"):
                found = [getattr(one, value) for one in mine]
                figures.append(_spread(Spread.of(found) if found else None))
        rows.append((name, *figures))
    columns = ("store", "answers after s", "writes after s", "killed: answers after s", "killed: writes after s")
    return Table(title="Starting with all rows there", columns=columns, rows=tuple(rows))


def _filled(results: Results) -> list[Filled]:
    return [Filled(**one) for one in results["filled"]]


def _cells(results: Results) -> list[Cell]:
    return [Cell(**one) for one in results["cells"]]


def _started(results: Results) -> list[Start]:
    return [Start(**one) for one in results["starts"]]


def _spread(found: Spread | None) -> str:
    if found is None:
        return MISSING
    return f"{number(found.median)} ({number(found.low)}-{number(found.high)})"


# The page.


def page(results: Results) -> str:
    """The whole Markdown page."""
    found = {table.title: f"## {table.title}\n\n{markdown(table)}" for table in tables(results)}
    sections = [
        f"# {TITLE}",
        f"Written by `{results['taken']['command']}`; a new run replaces it. Every figure is in `vectors.json` beside "
        "this page.",
        "## What was measured",
        _method(results),
        _systems(results),
        _skipped(results),
        *found.values(),
        "## What the figures do not say",
        _limits(results),
        "## Taken on",
        machine_lines(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _method(results: Results) -> str:
    settings = results["settings"]
    shape = settings["shape"]
    return (
        f"{shape['rows']:,} unit vectors of {shape['dimension']} dimensions in {shape['clusters']} clusters of uneven "
        f"size and tightness, their spectrum falling as those of embeddings do, with a text of {shape['text_bytes']} "
        f"bytes and a number from 0 to 9 each; {shape['queries']:,} queries of the same kind, none of which is a row. "
        "A search asks for the ten nearest by cosine and gets ids and texts. The true ones are from NumPy. Each "
        f"store's index gets the least effort that finds {settings['recall']:.0%} of them on {shape['tuning']} other "
        "queries, with a filter and without; nothing is chosen by hand for this agent.\n\n"
        "First every store takes all rows in, one after the other, by one caller that waits for each acknowledgement, "
        "and is waited for until it is at rest. Then they take turns with searches, another one first each time, "
        f"{settings['rounds']} rounds of {settings['seconds']:g} s for each number of callers (threads of one process)."
        " Last, each is ended and started, in order and by kill -9; times are from the process's start to the first "
        "right answer and to the first acknowledged write. A figure is the median of the rounds, with the lowest and "
        "the highest in brackets."
    )


def _systems(results: Results) -> str:
    lines = []
    for name in results["settings"]["systems"]:
        system = SYSTEMS[name]
        installed = ", ".join(f"{package} {at}" for package, at in results["versions"].get(name, {}).items())
        effort = next((one for one in _filled(results) if one.system == name and one.effort), None)
        chosen = f"; chosen: {effort.effort}, with the filter {effort.filtered_effort}" if effort else ""
        version = f" ({installed})" if installed else ""
        lines.append(f"- **{name}**: {system.about}{chosen}. Acknowledged is what is {system.written}{version}")
    return "\n".join(lines)


def _skipped(results: Results) -> str:
    lines = [f"- **{one['system']}**: {one['why']}" for one in results["skipped"]]
    return "**Not measured:**\n\n" + "\n".join(lines) if lines else ""


def _limits(results: Results) -> str:
    others = [cell["other_cores"] for cell in results["cells"]]
    disturbed = sum(cores > DISTURBED_CORES for cores in others)
    lines = (
        f"Callers and stores share this machine's {results['machine']['cores']} cores. An embedded store is called as "
        "a function, in its callers' process; a server is called by gRPC, and its callers' Python takes a part of "
        "the machine that on another one it would not.",
        f"Other processes took {number(_median(others))} cores in the median measurement and "
        f"{number(max(others, default=0.0))} at most; in {disturbed} of {len(others)} measurements it was more than "
        f"{DISTURBED_CORES:g}.",
        "The vectors are made, not embedded: their clusters and spectrum are like those of embeddings, and no more.",
        "Rows are taken in once by each store; its writes' percentiles say how even that was.",
        "A rival's settings are named above; somebody who knows it better may find better ones.",
    )
    return "\n".join(f"- {line}" for line in lines)


def _median(values: Sequence[float]) -> float:
    return Spread.of(values).median if values else 0.0
