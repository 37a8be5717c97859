"""Takes Envoy's access log over, on a socket that Envoy and this process alone can open, and sums it up.

The log goes to the gateway's own process and not to the control plane: what travels from there is one small report a
second, however many calls there were. Envoy buffers a little and drops what cannot be delivered: calls never wait.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc

from nearmesh.gateway.calls import CallTally, Locate, Prediction, ended

SOCKET_FILE = "calls.sock"
# The kernel allows 108 bytes for a socket's path, its end included.
MAX_PATH_BYTES = 107

# What is expected of a model and an objective at the moment, if anything.
Expect = Callable[[str, str], Prediction | None]


class AccessLog(als_pb2_grpc.AccessLogServiceServicer):  # type: ignore[misc]
    """Counts each call of Envoy's log."""

    def __init__(self, tally: CallTally, locate: Locate, expect: Expect) -> None:
        self._tally = tally
        self._locate = locate
        self._expect = expect

    async def StreamAccessLogs(
        self, requests: AsyncIterator[als_pb2.StreamAccessLogsMessage], context: Any
    ) -> als_pb2.StreamAccessLogsResponse:
        """For as long as Envoy runs."""
        async for message in requests:
            for entry in message.http_logs.log_entry:
                call = ended(entry, self._locate)
                if call:
                    self._tally.add(call, self._expect(call.model, call.objective))
        return als_pb2.StreamAccessLogsResponse()


@asynccontextmanager
async def listening(log: AccessLog, path: Path) -> AsyncIterator[None]:
    """Serves the log on that socket."""
    server = grpc.aio.server()
    als_pb2_grpc.add_AccessLogServiceServicer_to_server(log, server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@contextmanager
def socket_path(data: Path) -> Iterator[Path]:
    """Where the socket is: in the gateway's own folder, or in a private one if that path is too long for a socket."""
    path = data.resolve() / SOCKET_FILE
    if len(str(path).encode()) <= MAX_PATH_BYTES:
        path.unlink(missing_ok=True)
        yield path
        path.unlink(missing_ok=True)
    else:
        with tempfile.TemporaryDirectory(prefix="nearmesh-") as folder:
            yield Path(folder) / SOCKET_FILE
