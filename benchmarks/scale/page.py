"""The results as tables and as a page that one can read: pure, from the JSON alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.figures import Spread
from benchmarks.table import Table, markdown

Results = Mapping[str, Any]
Row = Mapping[str, Any]

TITLE = "One control plane, many sites and streams"
# What is asked of the full size, and by which figure; the worst of its changes counts.
TARGETS: tuple[tuple[str, str, Callable[[Row], float], float], ...] = (
    ("the last stream has it after", "s", lambda row: _spread(row, "last_s").high, 3.0),
    ("processor time until then", "s", lambda row: _spread(row, "cpu_s").high, 2.0),
    ("memory, at its peak", "MiB", lambda row: row["peak_memory_mib"], 1536.0),
    ("deciding all routes", "ms", lambda row: max(_decided(row), default=float("nan")), 200.0),
    ("of it, processor time", "ms", lambda row: max(_decided(row, "decided_cpu_ms"), default=float("nan")), 200.0),
)


def tables(results: Results) -> list[Table]:
    """Every table of a run."""
    rows = results["measured"]
    full = rows[0]
    same_streams = [row for row in rows if row["size"]["streams"] == full["size"]["streams"]]
    same_sites = [row for row in rows if row["size"]["sites"] == full["size"]["sites"]]
    found = [_target_table(full)]
    if len(same_streams) > 1:
        found.append(_growth("sites", same_streams))
    if len(same_sites) > 1:
        found.append(_growth("streams", same_sites))
    return found


def _target_table(row: Row) -> Table:
    size = row["size"]
    rows = tuple(
        (what, f"{_number(value(row))} {unit}", f"{_number(limit)} {unit}") for what, unit, value, limit in TARGETS
    )
    return Table(
        title=f"{size['sites']} sites, {size['models']} models, {size['streams']} streams: the worst of "
        f"{len(row['changes'])} changes of a price",
        columns=("", "measured", "wanted: under"),
        rows=rows,
    )


def _growth(what: str, rows: Iterable[Row]) -> Table:
    ordered = sorted(rows, key=lambda row: row["size"][what])
    columns = (what, "median s", "last s", "CPU s", "CPU ms a stream", "deciding, CPU ms", "idle CPU %", "peak MiB")
    return Table(title=f"Growth in {what}", columns=columns, rows=tuple(_row(what, row) for row in ordered))


def _row(what: str, row: Row) -> tuple[str, ...]:
    concerned = row["changes"][0]["concerned"]
    decided = _decided(row, "decided_cpu_ms")
    return (
        f"{row['size'][what]:,}",
        _shown(_spread(row, "median_s")),
        _shown(_spread(row, "last_s")),
        _shown(_spread(row, "cpu_s")),
        _number(1000 * _spread(row, "cpu_s").median / concerned),
        _shown(Spread.of(decided)) if decided else "-",
        f"{100 * row['idle_cpu_share']:.0f}",
        f"{row['peak_memory_mib']:.0f}",
    )


def _spread(row: Row, value: str) -> Spread:
    return Spread.of([change[value] for change in row["changes"]])


def _decided(row: Row, which: str = "decided_ms") -> list[float]:
    return [ms for change in row["changes"] for ms in change[which]]


def _shown(spread: Spread) -> str:
    return f"{_number(spread.median)} ({_number(spread.low)}-{_number(spread.high)})"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def page(results: Results) -> str:
    """The whole page, in Markdown."""
    taken, machine = results["taken"], results["machine"]
    changed = " with uncommitted changes" if taken["uncommitted_changes"] else ""
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB"
    parts = [
        f"# {TITLE}",
        f"`{taken['command']}`, {taken['at']}, commit {taken['commit'][:12]}{changed}, "
        f"{taken['duration_s'] / 60:.0f} minutes. {where}; load before: {machine['load_before']}.",
        *(f"## {table.title}\n\n{markdown(table)}" for table in tables(results)),
        _counts(results["measured"]),
        _HOW,
    ]
    return "\n\n".join(parts) + "\n"


def _counts(rows: Sequence[Row]) -> str:
    changes = [change for row in rows for change in row["changes"]]
    told = sum(change["responses"] for change in changes)
    due = sum(change["concerned"] for change in changes)
    spared, strayed = (sum(change[key] for change in changes) for key in ("spared", "responses_to_spared"))
    return (
        f"In {len(changes)} changes {due:,} times a stream was concerned; {told:,} responses were sent to them. "
        f"{spared:,} times a stream was not concerned; {strayed:,} responses were sent to those."
    )


_HOW = """\
Control plane, nodes and clients are a process each on this machine, and share its cores. Every node has every model,
but for the repriced one, which lacks one in twenty. Each node reports all its replicas every second. Each stream asks
for one model's listener, clusters and endpoints over TLS, as gRPC does, and acknowledges each response. The price
changes from dear to nearly free and back; a stream has heard when its first response of endpoints has come. Times are
from the beginning of the operator's call; processor time is the control plane's from then until the last stream had it,
with whatever else it did. Median (lowest-highest) over the changes."""
