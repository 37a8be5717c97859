"""A federated run on a screen while it goes on: a picture that changes on a terminal, else lines; or lines of JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Protocol

from nearmesh.cli import rollouts, run_records, run_words
from nearmesh.cli.output import changing_picture, note, print_json
from nearmesh.cli.run_tables import picture
from nearmesh.client import tasks
from nearmesh.client.runs import ENDED
from nearmesh.errors import MeshError
from nearmesh.v1 import run_pb2

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nearmesh.cli.session import Session
    from nearmesh.v1 import catalog_pb2


class Screen(Protocol):
    """Where a run is shown."""

    def show(self, found: run_pb2.Run) -> None: ...

    def show_rollout(self, found: catalog_pb2.Rollout) -> None: ...

    def away(self) -> None:
        """The control plane is not there for a moment."""


def watched(session: Session, run: str, screen: Screen, *, known: bool, promoted: bool = False) -> run_pb2.Run:
    """Watches a run until nothing more happens in it by itself, and returns it as it is then. Raises MeshError.

    `known`: it was there just now. `promoted`: that it is trained is not its end.
    """
    return asyncio.run(_watched(session, run, screen, known, promoted))


async def _watched(session: Session, run: str, screen: Screen, known: bool, promoted: bool) -> run_pb2.Run:
    last: run_pb2.Run | None = None
    rollout: asyncio.Task[None] | None = None
    try:
        async with session.dial() as admin, aclosing(admin.runs.watch(run, known=known, on_away=screen.away)) as stream:
            async for found in stream:
                last = found
                screen.show(found)
                if found.rollout and rollout is None and not _at_rest(found, promoted):
                    rollout = asyncio.create_task(_rollout(session, found, screen))
                if _at_rest(found, promoted):
                    break
    finally:
        await tasks.end([rollout] if rollout else [])
    assert last is not None, "a stream that ends without a word is an error of its own"
    return last


def _at_rest(found: run_pb2.Run, promoted: bool) -> bool:
    """Whoever is to promote a trained run has not begun, and may never."""
    if found.state == run_pb2.RUN_STATE_TRAINED:
        return not promoted and not found.asked.auto_promote
    return found.state in ENDED


async def _rollout(session: Session, found: run_pb2.Run, screen: Screen) -> None:
    """Shows the rollout that the run has come to; what ends it is told by the run."""
    try:
        async with session.dial() as admin:
            async for one in admin.watch_rollout(found.model, found.rollout):
                screen.show_rollout(one)
    except MeshError:
        # The run's own stream goes on over what cut this one.
        return


@contextmanager
def shown() -> Iterator[Screen]:
    """On a terminal a picture that changes; else a line on stderr for each thing that happens."""
    with changing_picture() as draw:
        yield _Picture(draw) if draw else Lines(note)


class _Picture:
    def __init__(self, draw: Callable[[RenderableType], None]) -> None:
        self._draw = draw
        self._parts: dict[str, RenderableType] = {}

    def show(self, found: run_pb2.Run) -> None:
        self._parts.pop("away", None)
        self._set("run", picture(found))

    def show_rollout(self, found: catalog_pb2.Rollout) -> None:
        self._set("rollout", rollouts.picture(found))

    def away(self) -> None:
        self._set("away", AWAY)

    def _set(self, part: str, what: RenderableType) -> None:
        from rich.console import Group

        self._parts[part] = what
        self._draw(Group(*self._parts.values()))


AWAY = "the control plane is away; the run goes on when it is back"


class Lines:
    """Each thing once, as it happens."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: dict[str, str] = {}
        self._rounds = 0
        self._checks: set[str] = set()

    def show(self, found: run_pb2.Run) -> None:
        for one in found.rounds[self._rounds :]:
            self._say(run_words.round_line(found, one))
        self._rounds = max(self._rounds, len(found.rounds))
        if found.HasField("gate"):
            new = [line for line in run_words.checks(found.gate) if line not in self._checks]
            self._checks.update(new)
            for line in new:
                self._say(line)
        if found.state not in ENDED:
            self._once("run", run_words.headline(found))

    def show_rollout(self, found: catalog_pb2.Rollout) -> None:
        if not found.ended_at_s:
            self._once("rollout", rollouts.headline(found))

    def away(self) -> None:
        self._say(AWAY)

    def _once(self, about: str, line: str) -> None:
        if line != self._said.get(about):
            self._said[about] = line
            self._say(line)


class JsonLines:
    """The whole run in one line of stdout, whenever something of it changes."""

    def show(self, found: run_pb2.Run) -> None:
        print_json(run_records.run(found), indent=None)

    def show_rollout(self, found: catalog_pb2.Rollout) -> None:
        return None

    def away(self) -> None:
        note(AWAY)


class Silent:
    """For programs that want the end alone."""

    def show(self, found: run_pb2.Run) -> None:
        return None

    def show_rollout(self, found: catalog_pb2.Rollout) -> None:
        return None

    def away(self) -> None:
        return None
