"""`flwr-serverapp` of this control plane's runs: Flower's own program, in which a data team's own app is watched.

    python -m nearmesh_controlplane.rounds.stock ARGUMENTS OF flwr-serverapp

The SuperExec starts it in the place of Flower's (it comes first on its PATH). Which run's folder an app belongs to, its
Flower run's id says: the control plane writes that down as soon as it knows it. The mesh's own app knows its folder
itself, and is none of this program's business.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nearmesh.process import hold_for_life
from nearmesh_controlplane.runs.folder import End, RunFolder

# The folder in which a file named by the Flower run's id holds the path of the run's folder.
OBSERVED = "NEARMESH_OBSERVED_RUNS"
# The folder in which a file named by the Flower run's id is held while its server app lives. Flower itself takes a
# minute to notice that one is gone.
ALIVE = "NEARMESH_LIVING_RUNS"
# The app may be here before the control plane has noted whose it is. After so long nobody waits for this run any more:
# the control plane died between starting it and writing that down, and has started another one.
KNOWN_WITHIN_S, LOOK_EVERY_S = 30.0, 0.1


class NobodyWaits(Exception):
    """No run of the mesh belongs to this run of Flower's."""


def main() -> None:
    """Runs Flower's program, whose end is this one's."""
    from flwr.superlink.cli import flwr_serverapp

    watch(Path(os.environ[OBSERVED]), Path(os.environ[ALIVE]))
    flwr_serverapp()


def watch(observed: Path, alive: Path | None = None) -> None:
    """From now on, whatever app runs in this process is watched; in `alive` it is told that the process lives."""
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import Strategy

    state = _State(observed, alive)
    ServerApp.__call__ = state.called(ServerApp.__call__)  # type: ignore[method-assign]
    Strategy.start = state.started(Strategy.start)  # type: ignore[method-assign]


def folder_of(observed: Path, run: int, clock: Callable[[], float] = time.monotonic) -> RunFolder:
    """Waits until it is known. Raises NobodyWaits."""
    until_s = clock() + KNOWN_WITHIN_S
    while True:
        try:
            return RunFolder(Path((observed / str(run)).read_text("utf-8")))
        except FileNotFoundError:
            if clock() > until_s:
                raise NobodyWaits(f"no run of the mesh waits for Flower's run {run}; it ends here") from None
            time.sleep(LOOK_EVERY_S)


class _State:
    """What is known of the app in this process."""

    def __init__(self, observed: Path, alive: Path | None) -> None:
        self._observed = observed
        self._alive = alive
        self._run = 0
        # Only the first strategy that an app starts is what the run is about.
        self._watched = False

    def called(self, original: Callable[..., None]) -> Callable[..., None]:
        """The app itself: an error that ends it is noted, so that it is not tried again and again."""

        @functools.wraps(original)
        def call(app: Any, grid: Any, context: Any) -> None:
            self._run = context.run_id
            if self._alive:
                hold_for_life(self._alive / str(self._run))
            try:
                original(app, grid, context)
            except NobodyWaits:
                raise
            except Exception as error:
                self._note(error)
                raise

        return call

    def started(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`Strategy.start`, by which the app has its rounds made."""

        @functools.wraps(original)
        def start(strategy: Any, grid: Any, *arguments: Any, **named: Any) -> Any:
            if self._watched:
                return original(strategy, grid, *arguments, **named)
            self._watched = True
            from nearmesh_controlplane.rounds import observer

            folder = folder_of(self._observed, self._run)
            # Where the app writes its own files, such as the model in the end.
            os.chdir(folder.path)
            return observer.start(original, folder, strategy, grid, *arguments, **named)

        return start

    def _note(self, error: Exception) -> None:
        from nearmesh_controlplane.rounds.asking import BROKEN_WAY

        if isinstance(error, BROKEN_WAY):
            return
        try:
            folder = folder_of(self._observed, self._run)
        except NobodyWaits:
            return
        # The mesh's own app says by itself how it ended.
        if not folder.plan().parameters and folder.end() is None:
            folder.write_end(End(reason=f"the app failed: {type(error).__name__}: {str(error)[:200]}"))


if __name__ == "__main__":
    main()
