"""What people see while a package's weights are fetched and looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nearmesh.cli.output import console, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bars:
    """What is being done, and a line for each file that is on its way."""

    def __init__(self, progress: Progress, doing: str) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._doing = progress.add_task(doing, total=None, came="")

    def doing(self, what: str) -> None:
        """Says so on the first line."""
        self._progress.update(self._doing, description=what)

    def __call__(self, name: str, done: int, total: int | None) -> None:
        """So far has a file come."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(f"fetching {name}", total=total, came="")
        came = size(done) + (f" of {size(total)}" if total else "")
        self._progress.update(self._tasks[name], completed=done, total=total, came=came)


@contextmanager
def fetch_bars(folder: Path) -> Iterator[Bars]:
    """On a terminal alone."""
    from rich.progress import BarColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[came]}", markup=False),
        TransferSpeedColumn(),
    )
    screen = console(err=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        yield Bars(progress, f"checking {folder}")
