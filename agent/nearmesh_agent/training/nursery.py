"""Where apps begin on a node: `python -m nearmesh_agent.training.nursery flower-nursery [--own-apps] [FD]`.

Flower has a process for each message, and each would import Flower, NumPy and PyTorch anew: seconds of a core, which on
a node that serves is most of what a small round costs. Here that is imported once, and an app begins as a fork. Flower
also takes an app for lost that has not spoken for half a minute after it was started, which on a busy node is too short
for imports that yield to everything else.

A program that is to begin calls through a socket in the folder that all of them run in (`nursery_call`). The kernel
ends what was forked together with this process. FD is told when it is ready; beside it runs the SuperExec.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from nearmesh import leash
from nearmesh_agent.training.nursery_call import GO, LONGEST, SOCKET
from nearmesh_agent.training.programs import APP, OWN_APPS

# What apps use, PyTorch where it is installed. Not ONNX Runtime: it begins a thread, and a fork of a process with
# threads may find a lock held that nobody will release.
_IMPORTED = (APP, "nearmesh_agent.training.client_app", "nearmesh_agent.training.plain_recipe")
_IF_THERE = ("torch",)


def main(arguments: Sequence[str]) -> None:
    """For ever."""
    nursery = os.getpid()
    Path(SOCKET).unlink(missing_ok=True)
    # Those that keep the connection are in a hurry; this is not, nor is what begins here.
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    _import()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(SOCKET)
        listener.listen(64)
        signal.signal(signal.SIGCHLD, _reap)
        if arguments[-1].isdecimal():
            os.write(int(arguments[-1]), GO)
            os.close(int(arguments[-1]))
        while True:
            connection, _ = listener.accept()
            with connection:
                argv = _asked(connection)
            if argv and not os.fork():
                listener.close()
                _be(argv, nursery, own_apps=OWN_APPS in arguments)


def _import() -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    for name in _IF_THERE:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            # Of a broken installation those recipes have to speak that need it.
            print(f"{name} cannot be imported: {error}", file=sys.stderr, flush=True)  # noqa: T201  # its log
    # What is not looked at again stays shared with those that are forked.
    gc.collect()
    gc.freeze()


def _asked(connection: socket.socket) -> list[str]:
    """The arguments of the program that is to begin; none where the caller is not there any more."""
    connection.settimeout(1.0)
    try:
        with connection.makefile("rb") as file:
            found = json.loads(file.readline(LONGEST))
        # Raises where nobody waits for it.
        connection.sendall(GO)
    except (OSError, ValueError):
        return []
    return [str(one) for one in found]


def _be(argv: list[str], nursery: int, *, own_apps: bool) -> NoReturn:
    """In the fork: becomes the program, and never returns into the loop."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        leash.end_with(nursery)
        sys.argv = argv
        importlib.import_module(APP).main(own_apps=own_apps)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reap(*_: object) -> None:
    """Those that have ended. Not SIG_IGN: what they used would not be counted."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
