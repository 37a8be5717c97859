"""Flower's SuperNode with its SuperExec: `python -m nearmesh_agent.training.supernode_process flower-supernode ...`.

Its arguments, but for a first `--own-apps`, are those of `flower-supernode`; this adds where its Runtime API listens,
which starts the apps: a port of loopback that the system gives, behind a secret that the SuperExec alone knows, since
other users of the machine reach loopback as well. Four things Flower's own program does not do:

- A SuperExec that ends is started again, and the message that the SuperNode holds is not lost with it. So is the
  nursery, from which apps are forked.
- Where the SuperNode gives up its work, after an answer that it did not expect, the process ends. Flower's goes on for
  ever, since its HTTP server runs in a thread of its own, and no longer asks for messages.
- Where the one before was killed, its leave is taken for it. The SuperLink would otherwise hold it to be there, and
  refuse this one, until its heartbeats have been missing for a minute.
- Where messages follow each other, it asks for the next one soon (`nearmesh_agent.training.pauses`).
"""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nearmesh import flower_processes
from nearmesh.addresses import free_port
from nearmesh.process import leashed
from nearmesh.tls import write_private
from nearmesh_agent.training import family, pauses, programs
from nearmesh_agent.training.programs import OWN_APPS, SUPEREXEC, SUPERNODE

LOOPBACK = "127.0.0.1"
# Read by both at their start, in the folder that they run in.
SECRET = Path("superexec.secret")
# Which Flower node the last one was, in the folder that they run in.
NODE_ID = "flower-node-id"
# Between two starts of the SuperExec, and of the nursery.
AGAIN_S = 1.0
# A nursery that takes longer to import what apps need is done without.
NURSERY_WITHIN_S = 120.0


def main(arguments: Sequence[str]) -> None:
    """Never returns."""
    name, *rest = arguments
    own_apps = [OWN_APPS] if OWN_APPS in rest[:1] else []
    rest = rest[len(own_apps) :]
    write_private(SECRET, secrets.token_bytes(32))
    # Were it taken in the next moment, the SuperNode ends and is started again.
    port = free_port(LOOPBACK)
    secret = ["--superexec-auth-secret-file", str(SECRET)]
    api = f"{LOOPBACK}:{port}"
    superexec = [
        flower_processes.script(SUPEREXEC, "nearmesh-agent"),
        "--insecure",
        "--runtime-api-address",
        api,
        *secret,
        "--parent-pid",
        str(os.getpid()),
    ]
    nursery = [sys.executable, "-m", programs.NURSERY, family.NURSERY, *own_apps]
    ready = threading.Event()
    threading.Thread(target=_keep_nursery, args=(nursery, ready), daemon=True).start()
    threading.Thread(target=_keep_superexec, args=(superexec, ready), daemon=True).start()
    sys.argv = [name, *rest, "--isolation", "process", "--host", LOOPBACK, "--port", str(port), *secret]
    code = 1
    try:
        take_leave_for_the_one_before(Path(NODE_ID))
        pauses.of(importlib.import_module("flwr.supernode.start_client_internal"))
        (program,) = importlib.metadata.entry_points(group="console_scripts", name=SUPERNODE)
        program.load()()
        print("the SuperNode gave up its work", file=sys.stderr)  # noqa: T201  # its log
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stderr.flush()
        # Not `sys.exit`: that waits for the HTTP server.
        os._exit(code)


def take_leave_for_the_one_before(kept: Path) -> None:
    """Before this SuperNode is activated, the one whose id `kept` has is not any more; then `kept` has this one's."""
    import httpx
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.supernode.fleet_http_client import FleetHttpClient

    activate = FleetHttpClient.ActivateNode

    def activated(client: Any, request: Any) -> Any:
        try:
            client.DeactivateNode(DeactivateNodeRequest(node_id=int(kept.read_text("utf-8"))))
        except (FileNotFoundError, ValueError, httpx.HTTPStatusError):
            # The first one here; or it has taken leave itself, or the SuperLink never knew it.
            pass
        response = activate(client, request)
        kept.write_text(str(response.node_id), "utf-8")
        return response

    FleetHttpClient.ActivateNode = activated  # type: ignore[assignment,method-assign]


def _keep_nursery(command: Sequence[str], ready: threading.Event) -> None:
    """Sets `ready` when it has imported all, or has failed in that."""
    while True:
        try:
            _nursery(command, ready)
        except OSError as error:
            # No more processes, for now; apps begin without it.
            print(f"the nursery cannot be started: {error}", file=sys.stderr)  # noqa: T201  # its log
        ready.set()
        time.sleep(AGAIN_S)


def _nursery(command: Sequence[str], ready: threading.Event) -> None:
    """One of them, to its end."""
    read, write = os.pipe()
    try:
        # Ended by the kernel with the thread that starts it, which lives as long as the process.
        process = subprocess.Popen(leashed([*command, str(write)]), stdin=subprocess.DEVNULL, pass_fds=(write,))
    except OSError:
        os.close(read)
        raise
    finally:
        os.close(write)
    os.read(read, 1)
    os.close(read)
    ready.set()
    process.wait()


def _keep_superexec(command: Sequence[str], ready: threading.Event) -> None:
    """Not before apps can begin: from when it takes a message on, Flower waits for the app for half a minute."""
    ready.wait(NURSERY_WITHIN_S)
    while True:
        try:
            subprocess.run(leashed(command), stdin=subprocess.DEVNULL, check=False)
        except OSError as error:
            # No more processes, for now. Without it, messages would be held here and nothing would come of them.
            print(f"the SuperExec cannot be started: {error}", file=sys.stderr)  # noqa: T201  # its log
        time.sleep(AGAIN_S)


if __name__ == "__main__":
    main(sys.argv[1:])
