"""What every command shares: the mesh it speaks to, one connection to it, and how a failure ends the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from nearmesh.cli.place import Options, Place, find

if TYPE_CHECKING:
    from nearmesh.client.admin import AdminClient

T = TypeVar("T")

# Makes the client of a mesh; tests put their own here.
Dial = Callable[[Place], "AdminClient"]

INTERRUPTED = 130


def dial(place: Place) -> AdminClient:
    """The real client; imported only now, because gRPC takes a while and `--help` should not."""
    from nearmesh.client.admin import AdminClient

    return AdminClient(place.control_plane, place.ca_pem, place.token)


class Session:
    """The object that click hands to each command."""

    def __init__(self, options: Options, dial: Dial = dial) -> None:
        self._options = options
        self._dial = dial

    @cached_property
    def place(self) -> Place:
        """The mesh, looked for when a command first needs it. Raises click.UsageError, ConfigError."""
        return find(self._options, Path.cwd())

    def dial(self) -> AdminClient:
        """A client to enter with `async with`. Raises click.UsageError, ConfigError."""
        return self._dial(self.place)

    def ask(self, work: Callable[[AdminClient], Awaitable[T]]) -> T:
        """Runs `work` with a connection to the control plane. Raises MeshError."""

        async def run() -> T:
            async with self.dial() as admin:
                return await work(admin)

        return asyncio.run(run())


class Failure(click.ClickException):
    """Exit code 1, with one line on stderr; with `many`, one for each line of the message."""

    def __init__(self, message: str, *, many: bool = False) -> None:
        super().__init__(message)
        self._many = many

    def format_message(self) -> str:
        lines = self.message.splitlines() if self._many else [self.message]
        return "\n".join(" ".join(line.split()) for line in lines)

    def show(self, file: IO[Any] | None = None) -> None:
        for line in self.format_message().splitlines() or [""]:
            click.echo(f"error: {line}", file=file, err=file is None)


pass_session = click.make_pass_decorator(Session)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
