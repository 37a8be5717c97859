"""What the transport alone costs: a server that reads each request and says one answer, made beforehand.

grpc.aio's, or with `own` as second argument this agent's. Runs in the project's own environment.
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import numpy as np
import uvloop
from session import PROTOCOL_DTYPES, Session, Task
from tritonclient.grpc import service_pb2, service_pb2_grpc


class Echo(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers everything alike."""

    def __init__(self, answer: service_pb2.ModelInferResponse) -> None:
        self._answer = answer

    async def ModelInfer(
        self, request: service_pb2.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.ModelInferResponse:
        return self._answer


def answer(task: Task) -> service_pb2.ModelInferResponse:
    """Zeros, in the shape of the model's own answer."""
    found = service_pb2.ModelInferResponse(model_name=task.model, model_version="1")
    for output in Session(task.weights, threads=1).outputs:
        shape = (1, *output.shape)
        found.outputs.add(name=output.name, datatype=PROTOCOL_DTYPES[output.dtype.name], shape=shape)
        found.raw_output_contents.append(np.zeros(shape, output.dtype).tobytes())
    return found


async def serve(task: Task) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(answer(task)), server)
    server.add_insecure_port(f"127.0.0.1:{task.grpc_port}")
    await server.start()
    await server.wait_for_termination()


async def serve_own(task: Task) -> None:
    from nearmesh.rpc import EVERYONE, Gatekeeper
    from nearmesh.transport.server import Server

    policy = {"/inference.GRPCInferenceService/": EVERYONE}
    server = Server(Gatekeeper(mesh="bench", verifier=None, policy=policy, open_door=True), 1 << 26)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Echo(answer(task)), server)
    server.listen_plain(f"127.0.0.1:{task.grpc_port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run((serve_own if sys.argv[2:] == ["own"] else serve)(Task.of(sys.argv[1])))
