"""How values look on a screen: tables, JSON, and the numbers in them. Units stand in the headings."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Of a pipe or a file, which has no width of its own: lines should not break there.
PIPE_COLUMNS = 240
NOTHING = "-"


class Number(str):
    """A heading over numbers, which are set right."""

    __slots__ = ()


def console(*, err: bool = False) -> Console:
    """Rich without its guesses: nothing in a message is markup."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() else PIPE_COLUMNS
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


@contextmanager
def changing_picture() -> Iterator[Callable[[RenderableType], None] | None]:
    """Shows another picture in the last one's place on a terminal's stderr, and none in the end; None elsewhere."""
    screen = console(err=True)
    if not screen.is_terminal:
        yield None
        return
    from rich.live import Live

    with Live(console=screen, transient=True, auto_refresh=False) as live:
        yield lambda what: live.update(what, refresh=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """The only thing on stdout of a command with `--json`. A number that nobody knows is null."""
    click.echo(json.dumps(_known(value), indent=indent, ensure_ascii=False, allow_nan=False))


def _known(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    return [_known(item) for item in value] if isinstance(value, list | tuple) else value


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", empty: str = "") -> None:
    """A table with a heading for each column; `empty` is printed instead of one without rows."""
    from rich.table import Table

    rows = list(rows)
    screen = console()
    if title:
        screen.print(title, style="bold")
    if not rows:
        screen.print(empty, style="dim")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(columns))
    for heading in columns:
        table.add_column(str(heading), justify="right" if isinstance(heading, Number) else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    screen.print(table)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line."""
    print_table(("", ""), facts)


def note(text: str) -> None:
    """A word for people, beside what programs read."""
    click.echo(text, err=True)


# Numbers.


def ms(value: float) -> str:
    """A time in milliseconds: tenths below a hundred, thousandths where a tenth would say nothing."""
    if 0 < value < 0.1:
        return f"{value:.3f}"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def percent(share: float, *, digits: int = 0) -> str:
    """A share of 1."""
    return f"{100 * share:.{digits}f} %"


def size(size_bytes: int) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    value, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def moment(at_s: float) -> str:
    """Seconds since the epoch as date and time of day, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_s)) if at_s else NOTHING


def ago(at_s: float, now_s: float) -> str:
    """How long since, in the largest unit that fits."""
    if not at_s:
        return "never"
    seconds = max(0.0, now_s - at_s)
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
