"""What federated runs need of the engine that runs their apps: a seam, so that runs are tested without Flower.

`flower.FlowerEngine` is the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from nearmesh.errors import NotReady

# What an app may be told, as in TOML.
RunConfig = Mapping[str, str | int | float | bool]

# "lost": the engine does not know the run any more, since its database is gone; a new one has to be started.
State = Literal["waiting", "running", "finished", "failed", "stopped", "lost"]
ENDED: frozenset[State] = frozenset({"finished", "failed", "stopped", "lost"})


class EngineAway(NotReady):
    """The SuperLink is not there or did not answer. Tried again, the same call may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """How a run of the engine stands."""

    state: State
    # What the engine says of a run that failed; for people.
    detail: str = ""


class Engine(Protocol):
    """Each call may raise EngineAway; each may be repeated. All of them return at once, but for what they say."""

    async def prepare(self) -> None:
        """Has a SuperLink running when it returns, and kept running until `release`.

        Raises NotInstalled where Flower is not installed, ConfigError where its files cannot be used, EngineAway when
        it does not start.
        """
        ...

    async def release(self) -> None:
        """Nobody needs it any more; it ends after an idle time. Safe without `prepare`, and repeated."""
        ...

    async def register(self, keys: Mapping[str, str]) -> dict[str, int]:
        """Flower's node id for each node, by its OpenSSH public key (one line). Known ones keep their id.

        Raises InvalidInput for what is no such key.
        """
        ...

    async def start(self, app: Path, run_config: RunConfig, folder: Path | None = None) -> str:
        """Starts a Flower app, a folder or a FAB file, and gives the engine's own id of the run.

        `folder`, where there is one, gets the rounds of an app that knows nothing of it (`rounds.stock`).
        Raises InvalidInput for an app or a run config that Flower refuses. Not idempotent: note the id.
        """
        ...

    async def status(self, run: str) -> EngineStatus:
        """How a run stands."""
        ...

    async def log(self, run: str) -> str:
        """The end of what the run's server app printed, at most some kilobytes; empty where there is nothing."""
        ...

    async def stop(self, run: str) -> None:
        """Ends a run; one that has ended or is unknown is left as it is."""
        ...
