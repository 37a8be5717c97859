"""The picture of a run: its metric after each round, pooled and at each site, as PNG or SVG (or PDF).

Drawn by matplotlib, the extra `plots`: data teams know its pictures and mostly have it, it writes every format by one
code, and axes, legends and labels that do not overlap are a library's matter. It is loaded only here.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearmesh.cli import run_records as records
from nearmesh.cli import run_words as words
from nearmesh.errors import ConfigError
from nearmesh.v1 import run_pb2

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
# Of more sites a legend cannot tell the colours apart.
MOST_NAMED = 10
_WIDTH_IN, _HEIGHT_IN, _DPI = 8.0, 4.5, 150


class PlotFile(click.ParamType[Path]):
    """Where a picture goes; refused before anything is started that could not be drawn at its end."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Path:
        path = Path(value)
        if path.suffix.lower() not in FORMATS:
            self.fail(f"{value!r} ends in none of {', '.join(FORMATS)}", param, context)
        if not path.absolute().parent.is_dir():
            self.fail(f"{str(path.absolute().parent)!r} is no folder to write {path.name} to", param, context)
        if importlib.util.find_spec("matplotlib") is None:
            self.fail("plots are drawn by matplotlib: pip install 'nearmesh[plots]'", param, context)
        return path


plot_option = click.option(
    "--plot", type=PlotFile(), metavar="FILE", help="Draw the metric of each round to FILE.png, .svg or .pdf."
)


def draw(found: run_pb2.Run, path: Path) -> None:
    """Raises ConfigError for a run without a figure, OSError."""
    metric = words.metric_of(found)
    if not metric:
        raise ConfigError(f"run {found.id} has no figure to draw yet: no round has told one")
    # Not pyplot, which looks for a screen and keeps every figure.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    pooled = [(one.number, words.value_of(found, one)) for one in found.rounds]
    # Broad and behind the sites, of which one may run along it.
    _line(axes, pooled, label="pooled", color="0.7", linewidth=5)
    _sites(axes, found)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round (0: the version that it began from)")
    axes.set_ylabel(metric)
    axes.set_title(_title(found))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small", loc="best")
    figure.savefig(path, metadata=_metadata(path))


def _sites(axes: Axes, found: run_pb2.Run) -> None:
    nodes = words.nodes_of(found.rounds)
    named = len(nodes) <= MOST_NAMED
    for index, node in enumerate(nodes):
        parts = [(one.number, site) for one in found.rounds for site in one.sites if site.node == node]
        told = [(number, words.value_of(found, site)) for number, site in parts]
        counted = [
            (number, value if site.answer == records.COUNTED else None)
            for (number, value), (_, site) in zip(told, parts, strict=True)
        ]
        color, width = (f"C{index % 10}", 1.2) if named else ("0.6", 0.7)
        _line(axes, counted, label=node if named else "", marker=".", color=color, linewidth=width)
        suspect = [point for point, (_, site) in zip(told, parts, strict=True) if site.suspect]
        _line(axes, suspect, label="suspect", linestyle="none", marker="x", markersize=9, color="red", zorder=4)


def _line(axes: Axes, points: list[tuple[int, float | None]], *, label: str, **look: Any) -> None:
    """A round without a figure is a gap, not a straight line over it. A label stands in the legend once."""
    if any(value is not None for _, value in points):
        values = [math.nan if value is None else value for _, value in points]
        known = any(line.get_label() == label for line in axes.lines)
        axes.plot([number for number, _ in points], values, label="_" if known or not label else label, **look)


def _title(found: run_pb2.Run) -> str:
    made = f" -> {found.version}" if found.version else ""
    return f"{found.model}@{found.parent_version}{made}, run {found.id}: {records.state(found)}"


def _metadata(path: Path) -> dict[str, Any]:
    """Without the moment, so that the same run gives the same file."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
