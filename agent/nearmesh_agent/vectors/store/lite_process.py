"""Milvus Lite in a process of its own: it is Python, and would hold up every search beside it.

    python -m nearmesh_agent.vectors.store.lite_process FOLDER SOCKET

It answers Milvus's protocol on a Unix socket in a folder that nobody else may enter; Lite's own server would be on a
port that every user of the machine can reach, without a token. It prints a line when it does, or why it cannot.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from nearmesh.errors import MeshError
from nearmesh_agent.vectors.store import disk

READY = "ready"
# One for each of the few who call: the applier, and searches where there is no index of our own.
_THREADS = 4
# The one before may be about to end.
_LOCKED_S = 3.0
_STOP_S = 5.0


def main(arguments: list[str]) -> int:
    folder, socket = Path(arguments[0]).absolute(), arguments[1]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # The terminal's; whoever started us says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        disk.make_durable(folder)
        lite = _opened(folder)
    except (MeshError, OSError) as error:
        _say(f"{error}")
        return 1
    server = _serve(lite, socket)
    _say(READY)
    # Nobody reads on there.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stop.wait()
    server.stop(_STOP_S).wait()
    lite.close()
    disk.close(folder)
    return 0


def _opened(folder: Path) -> Any:
    """Lite on its folder, which is ours alone from then on. Raises OSError when another process keeps it, and
    DigestMismatch for one that is damaged."""
    from milvus_lite.db import MilvusLite
    from milvus_lite.exceptions import DataDirLockedError

    end = time.monotonic() + _LOCKED_S
    while True:
        try:
            lite = MilvusLite(str(folder))
            # It holds the folder now, and opens collections when they are asked for.
            disk.clear(folder)
            disk.check(folder)
            return lite
        except DataDirLockedError:
            if time.monotonic() > end:
                raise OSError(f"{folder} is in use by another process") from None
            time.sleep(0.05)


def _serve(lite: Any, socket: str) -> grpc.Server:
    from milvus_lite.adapter.grpc.servicer import MilvusServicer
    from pymilvus.grpc_gen import milvus_pb2_grpc

    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=unlimited)
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(lite), server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    return server


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
