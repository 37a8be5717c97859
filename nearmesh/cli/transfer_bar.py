"""The bar that shows bytes on their way, on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nearmesh.cli.output import console


@dataclass(slots=True)
class Shown:
    """Told how far it is; remembers what it was told last."""

    show: Callable[[int, int], None]
    done_bytes: int = 0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        self.done_bytes = done_bytes
        self.show(done_bytes, total_bytes)


@contextmanager
def transfer_bar(text: str) -> Iterator[Shown]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    screen = console(err=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield Shown(lambda done, total: bar.update(task, completed=done, total=total))
