"""Pretended nodes (tests/rollout_nodes.py) over real sessions with a control plane that is a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from nearmesh_agent.session.session import Session

from nearmesh.errors import NotFound
from nearmesh.tls import Credentials
from nearmesh.turns import Turns
from nearmesh.v1 import catalog_pb2
from nearmesh.v1 import node_pb2 as pb
from tests.integration.mesh_processes import ControlPlane, until
from tests.rollout_nodes import FakeNode

# Nodes report more often here, so that a test need not wait.
EVERY_S = 0.2


@asynccontextmanager
async def sessions(
    plane: ControlPlane, folder: Path, nodes: Sequence[FakeNode], control_planes: Sequence[str] = ()
) -> AsyncIterator[None]:
    """Every node has joined and keeps its session while the body runs."""
    async with AsyncExitStack() as stack:
        for node in nodes:
            credentials = await plane.machine(folder / node.name, node.name)
            task = asyncio.create_task(_run(node, credentials, control_planes or [plane.mesh]))
            stack.push_async_callback(_end, task)
        yield


async def _run(node: FakeNode, credentials: Credentials, control_planes: Sequence[str]) -> None:
    hello = pb.NodeHello(public_address=f"{node.name}:1", mesh_address=f"{node.name}:2", usd_per_hour=1.0)
    session = Session(Turns(control_planes), lambda: credentials, lambda: hello, node.status, node.hear)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.run())
        tasks.create_task(_go_on(node, session))


async def _go_on(node: FakeNode, session: Session) -> None:
    while True:
        await asyncio.sleep(EVERY_S)
        node.go_on(EVERY_S)
        session.report_now()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def comes_to(
    plane: ControlPlane, model: str, *, phase: int = 0, state: int = 0, within_s: float = 30.0
) -> catalog_pb2.Rollout:
    """The model's newest rollout, once it is in that phase and state."""
    async with plane.operator() as operator:

        async def there() -> catalog_pb2.Rollout | None:
            try:
                found = await operator.rollout(model)
            except NotFound:
                # Begun by way of another control plane, of which this one hears in a moment.
                return None
            return found if phase in (0, found.phase) and state in (0, found.state) else None

        found: catalog_pb2.Rollout = await until(there, within_s=within_s, what=f"phase {phase}, state {state}")
        return found
