"""The results as tables, and as a page that one can read: pure, from the JSON alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.figures import Cell, Spread, against, over_rounds
from benchmarks.table import Table, markdown
from benchmarks.ways import COMPARED, FLOOR

Results = Mapping[str, Any]

TITLE = "What a request costs on its way"


def tables(results: Results) -> list[Table]:
    """Every table of a run."""
    cells = [Cell(**cell) for cell in results["cells"]]
    measured = [_way_table(model, sizes, cells) for model, sizes in results["models"].items()]
    return [*measured, _decision_table(results["decisions"])]


def _way_table(model: str, sizes: Mapping[str, int], cells: Sequence[Cell]) -> Table:
    mine = [cell for cell in cells if cell.model == model]
    busiest = max(cell.callers for cell in mine)
    columns = (
        "way",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "over A ms",
        "times A",
        "on the node ms",
        f"per second, {busiest} callers",
        "share of A",
    )
    rows = tuple(_way_row(way, mine, busiest) for way in COMPARED)
    title = f"{model}: {_bytes(sizes['request_bytes'])} request, {_bytes(sizes['response_bytes'])} answer"
    return Table(title=title, columns=columns, rows=rows)


def _way_row(way: str, cells: Sequence[Cell], busiest: int) -> tuple[str, ...]:
    alone, floor_alone = _of(cells, way, 1), _of(cells, FLOOR, 1)
    busy, floor_busy = _of(cells, way, busiest), _of(cells, FLOOR, busiest)
    over_ms, factor = against(alone, floor_alone, "p50_ms")
    return (
        way,
        _spread(over_rounds(alone, "p50_ms")),
        _number(over_rounds(alone, "p95_ms").median),
        _number(over_rounds(alone, "p99_ms").median),
        "" if way == FLOOR else _number(over_ms),
        "" if way == FLOOR else f"{factor:.2f}",
        _number(over_rounds(alone, "node_p50_ms").median),
        _spread(over_rounds(busy, "calls_per_s")),
        "" if way == FLOOR else f"{against(busy, floor_busy, 'calls_per_s')[1]:.0%}",
    )


def _of(cells: Iterable[Cell], way: str, callers: int) -> list[Cell]:
    return [cell for cell in cells if cell.way == way and cell.callers == callers]


def _decision_table(decisions: Iterable[Mapping[str, Any]]) -> Table:
    rows = tuple(
        (d["what"], _spread(Spread(d["median_us"] / 1000, d["low_us"] / 1000, d["high_us"] / 1000))) for d in decisions
    )
    return Table(title="Decisions and conversions, in one process", columns=("what", "ms"), rows=rows)


# The page.


def page(results: Results) -> str:
    """The whole Markdown page."""
    sections = [
        f"# {TITLE}",
        f"Written by `{results['taken']['command']}`; a new run replaces it. The figures of every round are in "
        "`overhead.json` beside this page.",
        "## What was measured",
        _method(results),
        "\n".join(f"- **{way}**: {what}" for way, what in COMPARED.items()),
        "## Requests",
        _reading(results),
        *(f"### {table.title}\n\n{markdown(table)}" for table in tables(results)[:-1]),
        "## The mesh's own work",
        markdown(tables(results)[-1]),
        f"The local mesh was up {results['start_up_s']:.1f} s after it was asked for, with the models' files in the "
        "download cache: from no process at all to three sites that serve four models each, with every way measured.",
        "## What the figures do not say",
        _limits(results),
        "## Taken on",
        machine_lines(results),
    ]
    return "\n\n".join(sections) + "\n"


def _method(results: Results) -> str:
    settings = results["settings"]
    return (
        f"The same request goes six ways. Each way is a client process that stays warm; {settings['rounds']} rounds "
        f"visit every model, number of callers and way in turn, {settings['seconds']:g} s each, so that a disturbance "
        "meets all ways alike. Each visit begins with a call whose answer is checked and whose time is not counted. A "
        "time is the caller's: from arrays to arrays, encoding and decoding included (A needs neither)."
    )


def _reading(results: Results) -> str:
    settings, cells = results["settings"], results["cells"]
    fewest = min(cell["calls"] for cell in cells if cell["callers"] == 1)
    elsewhere = sum(cell["elsewhere"] for cell in cells)
    strays = (
        f"{elsewhere} of {sum(cell['calls'] for cell in cells)} calls were answered by another node than the nearest."
        if elsewhere
        else "Every call was answered by the nearest node."
    )
    return (
        "Figures are medians over the rounds, with the lowest and the highest round in brackets. Percentiles, *over A* "
        "and *times A* are of one caller that asks again as soon as it has its answer; the last two columns are of "
        "several such callers. *Over A*, *times A* and *share of A* compare within each round. *On the node* is the "
        "median of what the node itself reports, bytes in to bytes out; for A, of the engine call. The slowest cell "
        f"had {fewest} calls a round: with fewer than 100, its p99 is its slowest call. {strays}\n\n"
        f"C, D, E and W pass the WAN proxy, which emulates the {settings['round_trip_ms']:g} ms round trip inside a "
        "data centre and adds work of its own: what it adds in truth is W less B, and the cost of C, D and E "
        "themselves is what they take beyond W."
    )


def _limits(results: Results) -> str:
    return "\n".join(
        f"- {line}"
        for line in (
            f"Everything shares this machine's {results['machine']['cores']} cores: the clients, the WAN proxy, three "
            "nodes, three gateways and the control plane. With several callers the ways compete with the node for the "
            "cores; on machines of their own they would not, and would carry more.",
            "A has one engine call at a time, as a node's replica has. More instances or threads would move all ways.",
            "There is no GPU, no batching of requests, and no real network: no loss, no other traffic.",
            "B to E are Python clients; with several callers their interpreter's lock is part of the figure. The "
            "gateway listens in plain text for its local client and speaks TLS to the node.",
            "Connections are open and routes known: first calls are not counted. Nothing fails.",
            "D sends its token as gRPC's call credentials, B and W as plain metadata.",
        )
    )


def machine_lines(results: Results) -> str:
    """When it was taken, and on what."""
    taken, machine = results["taken"], results["machine"]
    changes = ", with uncommitted changes" if taken["uncommitted_changes"] else ""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return "\n".join(
        f"- {line}"
        for line in (
            f"{taken['at']}, commit `{taken['commit'][:12]}`{changes}, {taken['duration_s']:.0f} s in all",
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['kernel']}; load average "
            f"before the run {machine['load_before']}",
            f"Python {machine['python']}, {libraries}",
        )
    )


def _spread(spread: Spread) -> str:
    return f"{_number(spread.median)} ({_number(spread.low)}-{_number(spread.high)})"


def _number(value: float) -> str:
    """Three significant digits, but whole numbers above a hundred in full."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"
