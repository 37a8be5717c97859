"""What people see while a package's weights are fetched and looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nearmesh.cli.output import console, size

if TYPE_CHECKING:
    from rich.progress import TaskID

    from nearmesh.packaging.sources import OnProgress


@contextmanager
def fetch_bars(folder: Path) -> Iterator[OnProgress]:
    """A line for each file that is on its way, on a terminal alone."""
    from rich.progress import BarColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[came]}", markup=False),
        TransferSpeedColumn(),
    )
    screen = console(err=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:
        bars.add_task(f"checking {folder}", total=None, came="")
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(f"fetching {name}", total=total, came="")
            came = size(done) + (f" of {size(total)}" if total else "")
            bars.update(tasks[name], completed=done, total=total, came=came)

        yield show
