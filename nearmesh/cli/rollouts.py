"""Rollouts on a screen: live while they run, and their verdict at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from nearmesh.cli import records
from nearmesh.cli.output import NOTHING, Number, changing_picture, moment, ms, percent, print_table, size
from nearmesh.errors import DeadlineExceeded, NotLeader, Unreachable
from nearmesh.v1 import catalog_pb2

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nearmesh.cli.records import Record
    from nearmesh.cli.session import Session

# A control plane that starts anew, or another one that takes over, is there by then; the rollout goes on anyhow.
AWAY_S = 60.0
AGAIN_S = 0.5

_VERDICTS = {
    catalog_pb2.ROLLOUT_STATE_ABORTED: "was ended",
    catalog_pb2.ROLLOUT_STATE_FAILED: "was taken back by itself",
}


class _Screen(Protocol):
    def show(self, found: catalog_pb2.Rollout) -> None: ...


# Watching


def watched(
    session: Session, model: str, number: int, *, limit_s: float | None, quiet: bool
) -> tuple[catalog_pb2.Rollout, catalog_pb2.Rollout]:
    """Watches a rollout to its end: what was said last while it ran, and at its end. Raises DeadlineExceeded."""
    with _quiet() if quiet else _screen() as screen:
        return asyncio.run(_watched(session, model, number, limit_s, screen))


async def _watched(
    session: Session, model: str, number: int, limit_s: float | None, screen: _Screen
) -> tuple[catalog_pb2.Rollout, catalog_pb2.Rollout]:
    last: catalog_pb2.Rollout | None = None
    away_s: float | None = None
    try:
        async with asyncio.timeout(limit_s):
            while True:
                try:
                    async with session.dial() as admin:
                        async for found in admin.watch_rollout(model, number):
                            away_s, number = None, found.id
                            screen.show(found)
                            if found.ended_at_s:
                                return last or found, found
                            last = found
                except (Unreachable, NotLeader):
                    away_s = time.monotonic() if away_s is None else away_s
                    if time.monotonic() - away_s > AWAY_S:
                        raise
                await asyncio.sleep(AGAIN_S)
    except TimeoutError:
        far = f": {headline(last)}" if last else ""
        raise DeadlineExceeded(
            f"after {limit_s:g} s it has not ended{far}; it goes on by itself, and "
            f"`nearmesh model rollout watch {model}` shows how far it is"
        ) from None


@contextmanager
def _quiet() -> Iterator[_Screen]:
    class Silent:
        def show(self, found: catalog_pb2.Rollout) -> None:
            return None

    yield Silent()


@contextmanager
def _screen() -> Iterator[_Screen]:
    """On a terminal a picture that changes; else a line on stderr for each step."""
    with changing_picture() as draw:
        yield _Picture(draw) if draw else _Lines()


class _Picture:
    def __init__(self, draw: Callable[[RenderableType], None]) -> None:
        self._draw = draw

    def show(self, found: catalog_pb2.Rollout) -> None:
        self._draw(picture(found))


class _Lines:
    def __init__(self) -> None:
        self._said = ""

    def show(self, found: catalog_pb2.Rollout) -> None:
        line = headline(found)
        if line != self._said and not found.ended_at_s:
            self._said = line
            click.echo(line, err=True)


# In words


def headline(found: catalog_pb2.Rollout) -> str:
    """What it is at, in one line."""
    name = f"{found.model}@{found.version}"
    state, reason = records.rollout_state(found), f": {found.reason}" if found.reason else ""
    if found.ended_at_s or found.state == catalog_pb2.ROLLOUT_STATE_ROLLING_BACK:
        return f"{name} is {state}{reason}"
    held = " (paused)" if found.state == catalog_pb2.ROLLOUT_STATE_PAUSED else ""
    return f"{name}{held}: {_phase(found)}"


def _phase(found: catalog_pb2.Rollout) -> str:
    if found.nodes and not any(node.live for node in found.nodes):
        return "none of its nodes is there; it goes on when one is"
    if found.phase == catalog_pb2.ROLLOUT_PHASE_LOADING:
        loaded = sum(node.state == records.READY for node in found.nodes)
        return f"loading beside the standing version, {loaded} of {len(found.nodes)} nodes have it"
    if found.phase == catalog_pb2.ROLLOUT_PHASE_SCOUTING:
        return f"first on {found.scout} alone, {percent(found.share)} of its requests"
    if found.phase == catalog_pb2.ROLLOUT_PHASE_STEPS:
        share = f"{percent(found.share)} of the requests" if found.share else "compared on copies of requests alone"
        return f"step {found.step + 1} of {len(found.steps)}, {share}"
    over = sum(node.changed_over for node in found.nodes)
    return f"changing over, {over} of {len(found.nodes)} nodes have"


def verdict(found: catalog_pb2.Rollout) -> tuple[bool, str]:
    """Whether its version is the wanted one now, and the last words about it."""
    name, reason = f"{found.model}@{found.version}", f": {found.reason}" if found.reason else ""
    if found.state != catalog_pb2.ROLLOUT_STATE_DONE:
        how = _VERDICTS.get(found.state, f"is {records.rollout_state(found)}")
        return False, f"{name} {how}{reason}; the version before serves as it did"
    took_s = found.ended_at_s - found.created_at_s
    over = sum(node.changed_over for node in found.nodes)
    where = ", ".join((*found.sites, *found.regions)) or "every site"
    left_out = f" ({found.reason})" if found.reason else ""
    # Deployed where it serves already, or where no node is yet.
    how = f"{_nodes(over)} changed over in {took_s:.0f} s" if over else "no node had to change over"
    return True, f"{name} is wanted at {where}; {how}{left_out}"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def progress(found: catalog_pb2.Rollout) -> dict[str, Any]:
    """As `deploy --json` has it."""
    failed = {node.node: node.detail for node in found.nodes if node.state == records.FAILED}
    over = [node.node for node in found.nodes if node.changed_over]
    if found.ended_at_s:
        return {"serving": over, "pending": {}, "failed": failed}
    pending = {n.node: records.state_of(n.state) for n in found.nodes if n.node not in failed and not n.changed_over}
    return {"serving": over, "pending": pending, "failed": failed}


# In tables


def print_rollouts(found: list[Record]) -> None:
    rows = [
        (
            str(record["rollout"]),
            f"{record['model']}@{record['version']}",
            record["strategy"],
            record["state"],
            moment(record["created_at_s"]),
            f"{record['ended_at_s'] - record['created_at_s']:.0f}" if record["ended_at_s"] else NOTHING,
            record["actor"],
            record["reason"],
        )
        for record in found
    ]
    columns = (Number("number"), "version", "strategy", "state", "begun, UTC", Number("took, s"), "who", "reason")
    print_table(columns, rows, empty="no rollout yet: `nearmesh model deploy NAME@VERSION` begins one")


def picture(found: catalog_pb2.Rollout) -> RenderableType:
    """The headline, and a line for each node while it runs: of one that has ended nothing is counted any more."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading, right in (
        ("node", False),
        ("serves", False),
        (found.version, False),
        ("answered", True),
        ("failed", True),
        ("agree", True),
        ("p95, ms", True),
        ("before", True),
        ("", False),
    ):
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for node in found.nodes:
        table.add_row(*_row(found, node))
    head = Text(headline(found), style="bold")
    return Group(head, table) if found.nodes and not found.ended_at_s else head


def _row(found: catalog_pb2.Rollout, node: catalog_pb2.RolloutNode) -> tuple[str, ...]:
    compared = f"{node.agreed} of {node.compared}" if node.compared else NOTHING
    return (
        node.node,
        found.version if node.changed_over else node.standing_version or NOTHING,
        _state(node),
        str(node.answered),
        str(node.failed),
        compared,
        ms(node.service_ms_p95) if node.service_ms_p95 else NOTHING,
        ms(node.standing_ms_p95) if node.standing_ms_p95 else NOTHING,
        node.left_out or node.detail,
    )


def _state(node: catalog_pb2.RolloutNode) -> str:
    if not node.live and not node.changed_over:
        return "gone"
    if node.pull_bytes and node.pulled_bytes < node.pull_bytes:
        return f"pulling, {size(node.pulled_bytes)} of {size(node.pull_bytes)}"
    return records.state_of(node.state) if node.state else NOTHING
