"""A run's results as tables: pure, from the JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.serving.figures import (
    BurstCell,
    Cell,
    Floor,
    above,
    best_peer,
    floor_cpu_ms,
    floor_p50_ms,
    median,
    of,
    over,
    peak,
    ratio,
    value,
)
from benchmarks.serving.loops import CANCELLED, EMPTY_WITHIN_S
from benchmarks.serving.systems import ECHO, IN_PROCESS, OURS, SYSTEMS
from benchmarks.serving.transports import EXPIRED, OK, REFUSED
from benchmarks.table import Table
from nearmesh.cli.output import size

Results = Mapping[str, Any]
NOTHING = "-"
# Statuses with a column of their own; the rest is told in one.
NAMED = (OK, EXPIRED, REFUSED, CANCELLED)


def ratio_table(results: Results) -> Table:
    """This agent beside the best peer and the floors, model by model and callers by callers."""
    columns = (
        "model, callers",
        "per s / best peer",
        "per s / in-process",
        "per s / echo",
        "p50 / best peer",
        "p95 / best peer",
        "p99 / best peer",
        "CPU / best peer",
        "CPU / floors",
        "memory / best peer",
        "memory / in-process",
        "p50 over floors, ms",
    )
    cells, floors = _cells(results), _floors(results)
    rows = []
    for model in results["models"]:
        mine = [cell for cell in cells if cell.model == model]
        below = [floor for floor in floors if floor.model == model]
        callers = sorted({cell.callers for cell in mine if cell.system == OURS})
        rows += [(f"{model}, {count}", *_ratios(mine, below, count)) for count in callers]
    return Table(title="Ratios", columns=columns, rows=tuple(rows))


def _ratios(cells: Sequence[Cell], floors: Sequence[Floor], callers: int) -> list[str]:
    ours = of(cells, OURS, callers)
    most = {floor.round: floor.best["per_s"] for floor in floors}
    peers = {name: _to_best_peer(cells, callers, name) for name in ("p50_ms", "p95_ms", "p99_ms", "cpu_ms")}
    return [
        _to_best_peer(cells, callers, "per_s"),
        number(over(most, ours, "per_s")),
        number(ratio(ours, of(cells, ECHO, callers), "per_s")),
        *peers.values(),
        number(over(floor_cpu_ms(cells, floors, callers), ours, "cpu_ms")),
        _to_best_peer(cells, callers, "peak_bytes"),
        number(over({floor.round: floor.peak_bytes for floor in floors}, ours, "peak_bytes")),
        number(above(floor_p50_ms(cells, floors), ours, "p50_ms")) if callers == 1 else NOTHING,
    ]


def _to_best_peer(cells: Sequence[Cell], callers: int, name: str) -> str:
    peer = best_peer(cells, callers, name)
    if not peer:
        return NOTHING
    return f"{number(ratio(of(cells, OURS, callers), of(cells, peer, callers), name))} ({peer})"


def model_tables(results: Results) -> list[Table]:
    """What was measured, a table for each model."""
    cells, floors = _cells(results), _floors(results)
    return [
        _model_table(model, sizes, cells, [floor for floor in floors if floor.model == model])
        for model, sizes in results["models"].items()
    ]


def _model_table(model: str, sizes: Mapping[str, int], cells: Sequence[Cell], floors: Sequence[Floor]) -> Table:
    mine = [cell for cell in cells if cell.model == model]
    columns = ("system, callers", "per s", "p50 ms", "p95 ms", "p99 ms", "CPU ms", "peak MB", "not answered")
    rows = [
        _row(of(mine, system, callers))
        for system in SYSTEMS
        for callers in sorted({cell.callers for cell in mine if cell.system == system})
    ]
    title = (
        f"{model}: {size(sizes['request_bytes'])} of tensors in a request, {size(sizes['answer_bytes'])} in an answer, "
        f"at most {sizes['max_batch']} in a batch"
    )
    return Table(title=title, columns=columns, rows=(*rows, *_floor_rows(floors)))


def _row(cells: Sequence[Cell]) -> tuple[str, ...]:
    return (
        f"{cells[0].system}, {cells[0].callers}",
        *(number(value(cells, name)) for name in ("per_s", "p50_ms", "p95_ms", "p99_ms", "cpu_ms")),
        number((value(cells, "peak_bytes") or 0) / 1e6),
        str(sum(sum(cell.errors.values()) for cell in cells) or NOTHING),
    )


def _floor_rows(floors: Sequence[Floor]) -> list[tuple[str, ...]]:
    if not floors:
        return []
    best = max(floors, key=lambda floor: floor.best["per_s"]).best
    how = f"{IN_PROCESS}, {best['sessions']} x {best['threads']} threads, batch {best['batch']}"
    memory = number((median(floor.peak_bytes for floor in floors) or 0) / 1e6)
    return [
        _floor_row(how, [floor.best for floor in floors], memory),
        _floor_row(f"{IN_PROCESS}, one row alone", [floor.alone for floor in floors], memory),
    ]


def _floor_row(how: str, ways: Sequence[Mapping[str, Any]], memory: str) -> tuple[str, ...]:
    names = ("per_s", "p50_ms", "p95_ms", "p99_ms", "cpu_ms")
    return (how, *(number(median(way[name] for way in ways)) for name in names), memory, NOTHING)


def burst_tables(results: Results) -> list[Table]:
    """What became of more requests than a server can answer, a table for each model and kind of burst."""
    bursts = [BurstCell(**burst) for burst in results["bursts"]]
    kinds = dict.fromkeys((burst.model, burst.scenario) for burst in bursts)
    return [_burst_table(kind, [b for b in bursts if (b.model, b.scenario) == kind]) for kind in kinds]


def _burst_table(kind: tuple[str, str], bursts: Sequence[BurstCell]) -> Table:
    columns = (
        "system",
        "peak per s",
        "offered per s",
        "in time per s",
        "in time / peak",
        "p50 ms",
        "p99 ms",
        "expired",
        "refused",
        "refused in ms: p50, p99",
        "cancelled",
        "others",
        "empty after s",
        "peak MB",
        "client late by ms",
    )
    systems = dict.fromkeys(burst.system for burst in bursts)
    order = [name for name in SYSTEMS if name in systems]
    rows = tuple(_burst_row(name, [burst for burst in bursts if burst.system == name]) for name in order)
    return Table(title=f"{kind[0]}, {kind[1]}", columns=columns, rows=rows)


def _burst_row(system: str, bursts: Sequence[BurstCell]) -> tuple[str, ...]:
    def middle(name: str) -> str:
        return number(median(getattr(burst, name) for burst in bursts))

    def time(status: str, percentile: str) -> str:
        return number(median(burst.time_ms(status, percentile) for burst in bursts))

    def share(status: str) -> str:
        return f"{median(burst.share(status) for burst in bursts) or 0:.0%}"

    never = any(burst.empty_s is None for burst in bursts)
    return (
        system,
        middle("peak_per_s"),
        middle("offered_per_s"),
        middle("goodput_per_s"),
        number(median(burst.kept for burst in bursts)),
        time(OK, "p50_ms"),
        time(OK, "p99_ms"),
        share(EXPIRED),
        share(REFUSED),
        f"{time(REFUSED, 'p50_ms')}, {time(REFUSED, 'p99_ms')}",
        share(CANCELLED),
        _others(bursts),
        f"over {EMPTY_WITHIN_S:.0f}" if never else middle("empty_s"),
        number((median(burst.peak_bytes for burst in bursts) or 0) / 1e6),
        middle("lag_p99_ms"),
    )


def _others(bursts: Sequence[BurstCell]) -> str:
    """The largest share that each unnamed status had in a round."""
    names = sorted({status for burst in bursts for status in burst.statuses if status not in NAMED})
    return ", ".join(f"{name} {max(burst.share(name) for burst in bursts):.1%}" for name in names) or NOTHING


def peak_rows(results: Results) -> tuple[tuple[str, ...], ...]:
    """Each model's peak: this agent's, the best peer's, and their ratio."""
    cells = _cells(results)
    found = []
    for model in results["models"]:
        mine = [cell for cell in cells if cell.model == model]
        _, ours = peak(mine, OURS)
        rates = {name: peak(mine, name)[1] for name, system in SYSTEMS.items() if system.environment}
        best = max(rates, key=lambda name: rates[name])
        share = number(ours / rates[best] if rates[best] and ours else None)
        found.append((model, number(ours or None), f"{number(rates[best] or None)} ({best})", share))
    return tuple(found)


def peak_table(results: Results) -> Table:
    """The most that each can do, whatever the number of callers."""
    columns = ("model", f"{OURS}, per s", "best peer, per s", "ratio")
    return Table(title="At their peak", columns=columns, rows=peak_rows(results))


def _cells(results: Results) -> list[Cell]:
    return [Cell(**cell) for cell in results["cells"]]


def _floors(results: Results) -> list[Floor]:
    return [Floor(**floor) for floor in results["floors"]]


def number(figure: float | None) -> str:
    """Three significant digits, but whole numbers above a hundred in full."""
    if figure is None:
        return NOTHING
    if abs(figure) >= 99.95:
        return f"{figure:.0f}"
    if abs(figure) >= 9.995:
        return f"{figure:.1f}"
    return f"{figure:.2f}" if abs(figure) >= 0.0995 else f"{figure:.2g}"
