"""How far a drain has come: what is still under way on the node, and when nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from nearmesh.errors import DeadlineExceeded, MeshError, NotFound
from nearmesh.v1 import admin_pb2

if TYPE_CHECKING:
    from nearmesh.client.admin import AdminClient

# A node reports once a second; people see no difference below this.
POLL_S = 0.25
# A session may break for a moment; a node that is away for so long has ended, and what it had with it.
GONE_AFTER_S = 10.0


class DrainUndone(MeshError):
    """Somebody took the drain back while it was waited for."""


def said(node: admin_pb2.Node) -> str:
    """In one line."""
    if not node.live:
        return f"{node.id} is away"
    if node.drained:
        return f"{node.id} is drained: nothing is under way on it"
    return (
        f"{node.id} is draining: {_count(node.in_flight, 'request')} and {_count(node.sequences, 'sequence')} under way"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


async def follow(
    admin: AdminClient, name: str, *, limit_s: float, on_progress: Callable[[admin_pb2.Node], None]
) -> admin_pb2.Node:
    """Waits until the drain is over, or the node gone. Raises DeadlineExceeded that says what is left, DrainUndone."""
    found: admin_pb2.Node | None = None
    clock = asyncio.get_running_loop().time
    there_s = clock()
    try:
        async with asyncio.timeout(limit_s):
            while True:
                found = await _node(admin, name)
                if not found.draining:
                    raise DrainUndone(f"{name} is not drained any more: somebody took it back")
                on_progress(found)
                there_s = clock() if found.live else there_s
                if found.drained or clock() - there_s >= GONE_AFTER_S:
                    return found
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        left = said(found) if found else f"the control plane said nothing of {name}"
        raise DeadlineExceeded(
            f"after {limit_s:g} s {left}; it stays out of the routes, and `nearmesh node list` says how far it is"
        ) from None


async def _node(admin: AdminClient, name: str) -> admin_pb2.Node:
    for node in await admin.nodes():
        if node.id == name:
            return node
    raise NotFound(f"no node {name!r} in the mesh")
