"""The node's part in federated rounds: what it says of itself, and a SuperNode while the mesh asks for one."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path

from nearmesh.tls import Credentials
from nearmesh.v1 import node_pb2 as pb
from nearmesh_agent.training import key
from nearmesh_agent.training.config import DataConfig, TrainingConfig
from nearmesh_agent.training.supernode import Budget, SuperNode

log = logging.getLogger(__name__)

# Whether the data are there, and whether the mesh's authority is another one.
LOOK_EVERY_S = 10.0
NO_FLOWER = "Flower is not installed on it: pip install 'nearmesh-agent[rounds]'"


class Training:
    """Nothing at all where the operator has not allowed it."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        credentials: Callable[[], Credentials],
        budget: Budget,
        *,
        on_change: Callable[[], None] = lambda: None,
        supernode: SuperNode | None = None,
    ) -> None:
        """`folder` is training's own, below the node's data. `on_change` has the node report at once."""
        self._config = config
        self._credentials = credentials
        self._budget = budget
        self._supernode = supernode or SuperNode(config, folder, credentials, budget, on_change=on_change)
        self._missing = frozenset[str]()
        self._installed = importlib.util.find_spec("flwr") is not None
        # Where the SuperLink is; empty: nobody asks for this node.
        self._asked = ""
        self._leaving = False
        self._changed = asyncio.Event()

    def want(self, state: pb.WantedState) -> None:
        """What the control plane wants of this node."""
        able = self._config.allowed and self._installed and not self._leaving
        found = self._config.superlink or state.training.superlink
        self._ask(found if able and state.HasField("training") else "")

    def leave(self) -> None:
        """The node goes away: what it does of a round is not finished, and nothing new begins."""
        self._leaving = True
        self._ask("")

    def status(self) -> pb.TrainingStatus | None:
        """None where training is not allowed."""
        if not self._config.allowed:
            return None
        models = sorted(self._config.data.keys() - self._missing) if self._installed else []
        return pb.TrainingStatus(
            models=models,
            public_key=key.public_openssh(self._credentials().key_pem),
            running=self._supernode.running,
            paused=self._budget.paused,
            yielded_s=self._budget.yielded_s,
            cpu_share=self._config.cpu_share,
            detail=self._detail(),
            own_apps=self._config.own_apps,
        )

    async def run(self) -> None:
        """For as long as the agent does; cancelled, it ends the SuperNode first."""
        if not self._config.allowed:
            return
        if not self._installed:
            log.error("[training] is allowed in node.toml, and Flower is not installed: %s", NO_FLOWER)
        while True:
            self._changed.clear()
            asked, authority = self._asked, self._credentials().ca_pem
            kept = asyncio.create_task(self._supernode.keep(asked)) if asked else None
            try:
                await self._until_changed(kept, authority)
            finally:
                if kept:
                    kept.cancel()
                    await asyncio.wait({kept})

    async def _until_changed(self, kept: asyncio.Task[None] | None, authority: bytes) -> None:
        """Returns when another SuperNode is asked for, or none, or one that trusts another authority."""
        while self._credentials().ca_pem == authority:
            self._missing = await asyncio.to_thread(_missing, self._config.data, self._missing)
            changed = asyncio.create_task(self._changed.wait())
            waiting = {changed, kept} if kept else {changed}
            try:
                await asyncio.wait(waiting, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            if kept and (error := kept.done() and kept.exception()):
                # Serving goes on, whatever is wrong with training.
                log.error("the SuperNode is begun anew in %s s", LOOK_EVERY_S, exc_info=error)
                await asyncio.sleep(LOOK_EVERY_S)
                return
            if self._changed.is_set():
                return

    def _ask(self, superlink: str) -> None:
        if superlink != self._asked:
            log.info("training is %s", f"asked for through superlink={superlink}" if superlink else "not asked for")
            self._asked = superlink
            self._changed.set()

    def _detail(self) -> str:
        if not self._installed:
            return NO_FLOWER
        if self._missing and not self._supernode.detail:
            # Not where they would be: that is the site's own.
            return f"data of {', '.join(sorted(self._missing))} are not where its node.toml says; its log has the path"
        return self._supernode.detail


def _missing(data: dict[str, DataConfig], before: frozenset[str]) -> frozenset[str]:
    """The models whose data are not there, or not to be read; new ones are logged."""
    # Not `Path.exists`, which raises where a folder is closed to this user or its server has gone.
    found = {name for name, one in data.items() if not one.loader and one.path and not os.access(one.path, os.R_OK)}
    for name in found - before:
        log.warning("no data to be read for model=%s at %s; the model is not trained here", name, data[name].path)
    return frozenset(found)
