"""A stand-in for a node, run as a process: serves the inference protocol on one port and says who answered.

    python xds_node.py ID CREDENTIALS_FOLDER [--mesh]

Prints its port as its only line. With --mesh it demands a certificate, as a node's mesh listener does. A request's
parameters may ask for more: `sleep_ms` before the answer, `status` to fail with.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh.tls import Credentials
from nearmesh.tokens import SUBJECT_HEADER

OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.lookahead_bytes", 16 * 2**20),
]


class Node(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers every model."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _answer(self, request: Any) -> Any:
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        answer.parameters["node"].string_param = self.name
        answer.parameters["bytes"].int64_param = sum(map(len, request.raw_input_contents))
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        wanted = {key: value.int64_param for key, value in request.parameters.items()}
        await asyncio.sleep(wanted.get("sleep_ms", 0) / 1000)
        if wanted.get("status"):
            code = next(c for c in grpc.StatusCode if c.value[0] == wanted["status"])
            await context.abort(code, f"{self.name} was told to fail")
        answer = self._answer(request)
        for key, value in context.invocation_metadata():
            if key == SUBJECT_HEADER:
                answer.parameters["subject"].string_param = value
        return answer

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield service_pb2.ModelStreamInferResponse(infer_response=self._answer(request))

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name=self.name)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=True)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        return service_pb2.RepositoryModelLoadResponse()


async def main(name: str, folder: Path, mesh: bool) -> None:
    found = Credentials.read(folder)
    assert found is not None
    server = grpc.aio.server(options=OPTIONS)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Node(name), server)
    pair = [(found.key_pem, found.certificate_pem)]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair, found.ca_pem, mesh))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), "--mesh" in sys.argv))
