"""A plain gRPC `xds:///` client, run as a process since gRPC reads one bootstrap for each.

    GRPC_XDS_BOOTSTRAP=... python xds_client.py

Reads a JSON command on each line: {"model", "token"?, "size"?, "timeout_s"?, "metadata"?, "parameters"?, "stream"?,
"x"?} ("x": what a real model is asked, a list of floats)
and prints a JSON answer for each: {"node"} or {"error", "detail"}, with "ms".
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh.client.bootstrap import read_bootstrap
from nearmesh.rpc import NODE_KEY

OPTIONS = [
    ("grpc.per_rpc_retry_buffer_size", 32 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
]
_channels: dict[str, grpc.Channel] = {}


def stub(model: str) -> service_pb2_grpc.GRPCInferenceServiceStub:
    if model not in _channels:
        found = read_bootstrap()
        credentials = grpc.xds_channel_credentials(grpc.ssl_channel_credentials(found.ca_pem))
        bearer = grpc.access_token_call_credentials(found.token)
        composite = grpc.composite_channel_credentials(credentials, bearer)
        _channels[model] = grpc.secure_channel(f"xds:///{model}", composite, options=OPTIONS)
    return service_pb2_grpc.GRPCInferenceServiceStub(_channels[model])


def request(command: dict[str, Any]) -> Any:
    made = service_pb2.ModelInferRequest(model_name=command["model"])
    if "x" in command:
        made.inputs.add(name="x", datatype="FP32", shape=[len(command["x"])])
        made.raw_input_contents.append(np.array(command["x"], np.float32).tobytes())
        return made
    made.raw_input_contents.append(bytes(command.get("size", 0)))
    for key, value in command.get("parameters", {}).items():
        made.parameters[key].int64_param = value
    return made


def held_open(first: Any) -> Iterator[Any]:
    """A request stream that sends no more and does not end either."""
    yield first
    threading.Event().wait()


def call(command: dict[str, Any]) -> dict[str, Any]:
    more = {"timeout": command.get("timeout_s", 10), "metadata": list(command.get("metadata", {}).items())}
    if command.get("stream"):
        answers = stub(command["model"]).ModelStreamInfer(held_open(request(command)), **more)
        answer = next(answers).infer_response
        if command["stream"] == "to the end":
            print(json.dumps({"begun": True}), flush=True)
            next(answers)
    else:
        answer, done = stub(command["model"]).ModelInfer.with_call(request(command), **more)
        if node := dict(done.initial_metadata()).get(NODE_KEY):
            return {"node": node}
    return {"node": answer.parameters["node"].string_param, "bytes": answer.parameters["bytes"].int64_param}


def main() -> None:
    for line in sys.stdin:
        start = time.monotonic()
        try:
            answer = call(json.loads(line))
        except grpc.RpcError as error:
            answer = {"error": error.code().name, "detail": error.details()}
        print(json.dumps(answer | {"ms": (time.monotonic() - start) * 1000}), flush=True)


if __name__ == "__main__":
    main()
