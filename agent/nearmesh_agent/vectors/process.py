"""The process that keeps a node's vectors: `python -m nearmesh_agent.vectors.process SETTINGS`, a child of the agent.

A process of its own, so that no search, index or crash of native code takes anything from inference. It answers on a
socket in a private folder; whoever reaches that is believed, as is what it says of its caller.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import uvloop

from nearmesh.errors import MeshError
from nearmesh.process import configure_logging, rare_collections, stop_on_signals
from nearmesh.rpc import ANYONE, Gatekeeper
from nearmesh.transport.server import Server
from nearmesh.v1 import vector_pb2_grpc
from nearmesh_agent.vectors.across.child import Across
from nearmesh_agent.vectors.across.ledger import NodeLedger
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.keeper import Keeper
from nearmesh_agent.vectors.parts import Parts
from nearmesh_agent.vectors.servicer import VectorServicer
from nearmesh_agent.vectors.settings import Settings
from nearmesh_agent.vectors.text.filling import FillServicer
from nearmesh_agent.vectors.upkeep import Upkeep

log = logging.getLogger(__name__)

# In which what is under way is answered when the agent leaves.
_GRACE_S = 2.0
# How long a thread that only works in Python keeps the others from going on. A search goes in and out of native code
# some times, and beside writes it would wait for 5 ms each time, as Python has it by itself.
_SWITCH_S = 0.0005
_SERVICES = ("VectorService", "VectorPeerService", "VectorAcrossService", "VectorFillService")
_POLICY = {f"/nearmesh.v1.{name}/": {ANYONE} for name in _SERVICES}


async def serve(
    settings: Settings, parts: Parts, stop: asyncio.Event, ready: Callable[[], None] = lambda: None
) -> None:
    """Until `stop`, or until a bug has made memory and journal differ. Raises MeshError."""
    keeper = Keeper(settings.config, settings.path, parts)
    upkeep = Upkeep(keeper)
    here = Here(node=settings.node, site=settings.site, region=settings.region)
    servicer = VectorServicer(keeper, upkeep, here, threads=settings.threads)
    server = Server(
        Gatekeeper(mesh="", verifier=None, policy=_POLICY, open_door=True), settings.max_message_bytes + 1024 * 1024
    )
    vector_pb2_grpc.add_VectorServiceServicer_to_server(servicer, server)
    vector_pb2_grpc.add_VectorFillServiceServicer_to_server(FillServicer(keeper), server)
    try:
        await keeper.open()
        running: list[Keeper | Upkeep | Across] = [keeper, upkeep]
        # Tests bring another one, of a site that is alone.
        if isinstance(keeper.ledger, NodeLedger):
            servicer.across = Across(keeper, keeper.ledger, here)
            servicer.across.add_to(server)
            running.append(servicer.across)
        server.listen_unix(Path(settings.socket))
        await server.start()
        ready()
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(part.run()) for part in running]
            await stop.wait()
            for task in background:
                task.cancel()
    finally:
        await server.stop(_GRACE_S)
        servicer.close()
        upkeep.close()
        await keeper.close()


def main(arguments: list[str]) -> None:
    if sys.__stderr__:
        # Native libraries may crash: where it was is in the log then, and nowhere else.
        faulthandler.enable(sys.__stderr__)
    settings = Settings.from_bytes(Path(arguments[0]).read_bytes())
    configure_logging(settings.log_level)
    # Native libraries take a moment; --help of the agent, and its tests, should not.
    parts: Parts = importlib.import_module("nearmesh_agent.vectors.real_parts").RealParts(settings)

    async def run() -> NoReturn:
        rare_collections()
        sys.setswitchinterval(_SWITCH_S)
        code = 1
        try:
            await serve(settings, parts, stop_on_signals())
            code = 0
        except* (MeshError, OSError) as group:
            log.error("vectors end: %s", "; ".join(str(error) for error in group.exceptions))
        finally:
            if bug := sys.exc_info()[1]:
                log.error("vectors end by a bug", exc_info=bug)
            logging.shutdown()
            # Threads may be waiting for Milvus, and the interpreter would wait for them.
            os._exit(code)

    uvloop.run(run())


if __name__ == "__main__":
    main(sys.argv[1:])
