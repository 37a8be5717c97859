"""The results as tables and as a page: pure, from the JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.replay import __doc__ as ASSUMPTIONS
from benchmarks.replay.figures import LEAST_IN_TIME, RIVALS_AT_LEAST
from benchmarks.table import Table, markdown

Results = Mapping[str, Any]

TITLE = "A day of the mesh, replayed"
UNPLANNED = "(ours without a plan)"


def tables(results: Results) -> list[Table]:
    """One for each day, and the bars."""
    return [*(_day_table(day) for day in results["days"]), bars(results)]


def bars(results: Results) -> Table:
    """Every bar on every day."""
    rows = [
        (day["name"], verdict["bar"], verdict["found"], "held" if verdict["held"] else "NOT HELD")
        for day in results["days"]
        for verdict in day["verdicts"]
    ]
    return Table(title="The bars", columns=("day", "bar", "found", ""), rows=tuple(rows))


def held(results: Results) -> bool:
    """Whether every bar was reached."""
    return all(verdict["held"] for day in results["days"] for verdict in day["verdicts"])


def _day_table(day: Mapping[str, Any]) -> Table:
    columns = ("policy", "cost", "x ours", "in time", "p50 ms", "p99 ms", "no answer", "second attempts")
    ours = day["ours"][0]["usd_per_million"]
    rivals = sorted(day["rivals"], key=lambda one: one["of_optimum"])
    unplanned = {**day["unplanned"], "policy": UNPLANNED}
    rows = [_row(one, ours) for one in (*day["ours"], *rivals, unplanned)]
    return Table(title=day["name"], columns=columns, rows=tuple(rows))


def _row(one: Mapping[str, Any], ours: float) -> tuple[str, ...]:
    return (
        one["policy"],
        f"{one['of_optimum']:.3f}",
        f"{one['usd_per_million'] / ours:.2f}" if ours else "",
        f"{one['of_feasible']:.4f}",
        f"{one['p50_ms']:.0f}",
        f"{one['p99_ms']:.0f}",
        f"{one['failed']:.2%}" if one["failed"] else "",
        f"{one['extra']:.1%}",
    )


def page(results: Results) -> str:
    """The whole Markdown page."""
    sections = [
        f"# {TITLE}",
        f"Written by `{results['taken']['command']}`; a new run replaces it. All figures are in `replay.json` beside "
        "this page.",
        "## What was played",
        "\n".join((ASSUMPTIONS or "").strip().splitlines()[2:]).strip(),
        "## The bars",
        markdown(bars(results)),
        "## Healthy days",
        "*Cost* is that of all inferences over the clairvoyant optimum's: the same linear program, second by second "
        "with the demand that really came, under the same bounds of capacity. (It keeps to those bounds; who fills a "
        "node a little further for a while may stay below it.) *In time* is the share of requests answered within "
        "200 ms, of the largest share that was possible; 0.99 meets the objective. *Second attempts* are failovers "
        "and hedges, of all requests.",
        f"*{UNPLANNED}* is no rival, nobody offers it: the cheapest node within reach, and the next one when that "
        "refuses. The difference to the first row is what measuring and planning are worth, the least on days on which "
        f"the cheap nodes have room for everybody. No bar is measured against it. {_close(results['days'])}",
        *_sections(results["days"], ill=False),
        "## Ill nodes",
        "A quarter of the nodes, drawn at random, are ill for half of the time: ten times slower, answering with "
        "errors, frozen, or lying (ten times slower, and claiming to take no time). Who routes by `nearest` asks for "
        "the shortest time, who routes by the default objective for the lowest price within the deadline, and gets "
        "times up to the deadline by intent: both are shown.",
        *_sections(results["days"], ill=True),
        "## Taken on",
        _taken(results),
    ]
    return "\n\n".join(sections) + "\n"


def _close(days: Sequence[Mapping[str, Any]]) -> str:
    """Where our own rule without a plan would pass for a rival that is too cheap."""
    found = []
    for day in days:
        ours, other = day["ours"][0], day["unplanned"]
        ratio = other["usd_per_million"] / ours["usd_per_million"]
        if not day["ill"] and other["of_feasible"] >= LEAST_IN_TIME and ratio < RIVALS_AT_LEAST:
            found.append(f"{day['name']} ({ratio:.2f})")
    where = ", ".join(found) or "no day"
    return f"Counted as a rival it would be in time at less than {RIVALS_AT_LEAST} x ours on {where}."


def _sections(days: Sequence[Mapping[str, Any]], *, ill: bool) -> list[str]:
    chosen = [day for day in days if day["ill"] is ill]
    return [f"### {day['name']}\n\n{day['what']}\n\n{markdown(_day_table(day))}" for day in chosen]


def _taken(results: Results) -> str:
    taken, machine = results["taken"], results["machine"]
    changes = ", with uncommitted changes" if taken["uncommitted_changes"] else ""
    seconds = [day["played_s"] for day in results["days"] if not day["ill"]]
    speed = f"; our policy took {min(seconds):.0f} to {max(seconds):.0f} s of one core for a day" if seconds else ""
    return "\n".join(
        (
            f"- {taken['at']}, commit `{taken['commit'][:12]}`{changes}, {taken['duration_s']:.0f} s in all{speed}",
            f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['kernel']}; load "
            f"average before the run {machine['load_before']}; Python {machine['python']}",
        )
    )
