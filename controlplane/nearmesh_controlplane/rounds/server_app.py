"""The mesh's ServerApp: Flower starts it for a run by recipe, and the run's folder tells it what to do.

How it ends stands in the folder's `end.json`, unless the way to the SuperLink broke or the process was stopped: then it
has not ended, and goes on from the folder when it is started again.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from nearmesh.errors import MeshError
from nearmesh_controlplane.rounds import candidate
from nearmesh_controlplane.rounds.asking import BROKEN_WAY, Asking, Clock, SystemClock
from nearmesh_controlplane.rounds.loop import Rounds
from nearmesh_controlplane.runs.folder import End, RunFolder

log = logging.getLogger(__name__)

RUN_FOLDER = "run-folder"

# So many answers are fetched side by side.
PULLS = 16

# Not the fault of this run, nor is a full disk: it is gone on with when this is started again.
_PASSING = (*BROKEN_WAY, OSError)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = RunFolder(Path(str(context.run_config[RUN_FOLDER])))
    # A thread that still waits for an answer keeps the process for a moment: Flower ends it after five seconds.
    executor = ThreadPoolExecutor(PULLS, thread_name_prefix="pull")
    try:
        work(folder, Asking(grid, executor), SystemClock())
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def work(folder: RunFolder, asking: Asking, clock: Clock) -> None:
    """All that is left of a run, and why it ended."""
    began_s = time.monotonic()
    try:
        rounds = Rounds(folder, asking, clock)
        candidate.judge(rounds, rounds.run())
    except _PASSING as error:
        log.error("broken off, to be gone on with: %s: %s", type(error).__name__, error)
        raise
    except MeshError as error:
        log.error("the run ends: %s", error)
        folder.write_end(End(reason=str(error)))
    except Exception as error:
        log.exception("the run ends by a bug")
        folder.write_end(End(reason=f"{type(error).__name__} in the server app; its log says more"))
        raise
    else:
        log.info("the run has ended after %.1f s", time.monotonic() - began_s)
        folder.write_end(End())
