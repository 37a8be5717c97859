"""Nodes that leave in order while clients call: on SIGTERM, by an operator's drain, and on a spot notice."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from nearmesh.devmesh.children import script
from nearmesh.devmesh.mesh import MESH_FILE, LocalMesh
from nearmesh.process import leashed
from tests.faults.loads import (
    WAYS,
    Conversation,
    check_met,
    check_moved,
    check_no_error,
    loads,
    moved_after_s,
    summary,
)
from tests.faults.scenarios import BEFORE_S, MOVED_WITHIN_S, RATES, Figures, is_ready, preferred, until

HOW = ("sigterm", "drain", "notice")
# As short as Google Cloud's and Azure's real ones are not: 30 s.
NOTICE_S = 8.0
# Out of the routes, the grace for sequences, and the end: the local mesh's nodes have 5 s of grace.
SIGTERM_WITHIN_S = 12.0
# Traffic while the node leaves, and while it is gone.
LOAD_S = BEFORE_S + 9.0


async def departed_node(mesh: LocalMesh, how: str, region: str, model: str, ways: Sequence[str] = WAYS) -> Figures:
    """The node that answers leaves under load; no call notices."""
    async with (
        preferred(mesh, model, region) as node,
        loads(mesh, model, region=region, ways=ways, rate=RATES[model], seconds=LOAD_S) as found,
    ):
        await asyncio.sleep(BEFORE_S)
        left_s = time.time()
        async with _leaving(mesh, how, node) as gone:
            gone_after_s = await gone
            # Longer than anything has on its way.
            await asyncio.sleep(max(0.0, left_s + LOAD_S - BEFORE_S - 1.0 - time.time()))
            until_s = time.time()
    check_met(found.results, node=node, until_s=left_s)
    check_no_error(found.results)
    check_moved(found.results, away_from=node, after_s=left_s, until_s=until_s, within_s=MOVED_WITHIN_S)
    await until(lambda: is_ready(mesh, model, region, node))
    moved = moved_after_s(found.results, away_from=node, after_s=left_s, until_s=until_s)
    return {
        "moved_within_s": round(moved, 3),
        "gone_within_s": round(gone_after_s, 2),
        "loads": [summary(result) for result in found.results],
    }


async def departed_sequences(mesh: LocalMesh, how: str, region: str) -> Figures:
    """The node of a sequence on each way in leaves for good; each is told so by its stream's own end."""
    state = str(mesh.plan.folder / MESH_FILE)
    command = [script("python"), "-m", "tests.faults.sequence_client"]
    clients = [Conversation(leashed([*command, way, region, state])) for way in WAYS]
    try:
        for client in clients:
            await client.start()
        began = [(await client.hear("began"))["node"] for client in clients]
        ((node, _),) = Counter(began).most_common(1)
        async with _leaving(mesh, how, node) as gone:
            gone_after_s = await gone
            for way, client, where in zip(WAYS, clients, began, strict=True):
                if where != node:
                    continue
                client.go_on()
                end = await client.hear("ended")
                assert (end["status"], end["reason"], end["tries"]) == ("ABORTED", "SEQUENCE_LOST", "1"), (way, end)
    finally:
        for client in clients:
            await client.close()
    await until(lambda: is_ready(mesh, "voice-activity", region, node))
    return {"gone_within_s": round(gone_after_s, 2)}


@asynccontextmanager
async def _leaving(mesh: LocalMesh, how: str, node: str) -> AsyncIterator[Any]:
    """Sends the node away; what is yielded waits until it is gone, or drained, and says after how long. Afterwards the
    node is back."""
    if how == "drain":
        async with mesh.admin() as admin:
            await admin.drain(node)
            try:
                yield _drained(mesh, node)
            finally:
                await admin.drain(node, undo=True)
        return
    child, region = mesh.find(node), node.removeprefix("node-")
    file = mesh.plan.notice(region)
    try:
        if how == "notice":
            file.write_text(json.dumps({"action": "terminate", "seconds": NOTICE_S}))
        else:
            child.signal(signal.SIGTERM)
        yield _ended(mesh, node, NOTICE_S if how == "notice" else SIGTERM_WITHIN_S)
    finally:
        file.unlink(missing_ok=True)
        if child.pid:
            await child.kill()
        await child.start()
        mesh.write_state()


async def _ended(mesh: LocalMesh, node: str, within_s: float) -> float:
    started = time.monotonic()
    async with asyncio.timeout(within_s):
        code = await mesh.find(node).ended()
    assert code == 0, f"{node} ended with code {code}:\n{mesh.find(node).last_words(20)}"
    return time.monotonic() - started


async def _drained(mesh: LocalMesh, node: str) -> float:
    started = time.monotonic()

    async def quiet() -> bool:
        async with mesh.admin() as admin:
            return next(found.drained for found in await admin.nodes() if found.id == node)

    await until(quiet)
    return time.monotonic() - started
