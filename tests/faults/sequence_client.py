"""A client in the middle of a sequence: begins one, waits for a line on standard input, and says how it ended.

`python -m tests.faults.sequence_client WAY REGION MESH_JSON` prints {"event": "began", "node": ...} and then
{"event": "ended", "status": ..., "reason": ..., "tries": ...}: the status that the caller's API gave, and at which try.
A stock client, whose stream broke with a status of its library's own, goes on with the sequence on a new stream, as it
would; that status counts.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import tritonclient.grpc as triton

from nearmesh import tensors
from nearmesh.client import connect_sync
from nearmesh.devmesh.samples import voice_activity_sequence
from nearmesh.devmesh.ways import XdsWay
from nearmesh.errors import MeshError
from nearmesh.rpc import REASON_KEY

MODEL, SEQUENCE_ID, TIMEOUT_S = "voice-activity", 11, 20.0
CALL: Mapping[str, Any] = voice_activity_sequence().calls[0]


class Stream(Protocol):
    def step(self, *, start: bool) -> str:
        """One call of the sequence; the node that answered."""
        ...


class TritonStream:
    """tritonclient's own stream to a gateway."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._open()

    def _open(self) -> None:
        self._answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client = triton.InferenceServerClient(self._gateway)
        self._client.start_stream(lambda result, error: self._answers.put((result, error)))

    def step(self, *, start: bool) -> str:
        if not self._answers.empty():
            # The stream has ended; the callback heard why, and a call would only say that it cannot be made.
            raise self._answers.get()[1]
        inputs = []
        for name, array in CALL.items():
            found = triton.InferInput(name, list(array.shape), triton.np_to_triton_dtype(array.dtype))
            inputs.append(found.set_data_from_numpy(np.asarray(array, order="C")))
        self._client.async_stream_infer(
            MODEL, inputs, parameters={"nearmesh_receipt": True}, sequence_id=SEQUENCE_ID, sequence_start=start
        )
        result, error = self._answers.get(timeout=TIMEOUT_S)
        if error:
            raise error
        return str(result.get_response().parameters["nearmesh_node"].string_param)

    def again(self) -> None:
        self._client.close()
        self._open()


class XdsStream:
    """A plain gRPC stream on xds:///."""

    def __init__(self, bootstrap: Path) -> None:
        self._way = XdsWay(bootstrap)
        self.again()

    def again(self) -> None:
        self._requests: queue.Queue[Any] = queue.Queue()

        def requests() -> Iterator[Any]:
            while True:
                yield self._requests.get()

        self._stream = self._way._stub(MODEL).ModelStreamInfer(requests(), timeout=60.0)

    def step(self, *, start: bool) -> str:
        request = tensors.encode_request(MODEL, CALL)
        request.parameters["nearmesh_receipt"].bool_param = True
        request.parameters["sequence_id"].int64_param = SEQUENCE_ID
        request.parameters["sequence_start"].bool_param = start
        self._requests.put(request)
        return str(next(self._stream).infer_response.parameters["nearmesh_node"].string_param)


# While the way in does not know yet that the node is gone, a stream that goes on breaks again; an app tries once more.
GOES_ON_S = 5.0


def stock(stream: Any) -> None:
    _say(event="began", node=stream.step(start=True))
    sys.stdin.readline()
    until_s, tries = time.monotonic() + GOES_ON_S, 0
    while time.monotonic() < until_s:
        try:
            while True:
                stream.step(start=False)
        except (grpc.RpcError, triton.InferenceServerException) as error:
            status, reason = _status(error)
            tries += 1
        if reason:
            break
        # The library's own status for a stream that broke: the app goes on where it was.
        stream.again()
    _say(event="ended", status=status, reason=reason, tries=str(tries))


def _status(error: Any) -> tuple[str, str]:
    if isinstance(error, triton.InferenceServerException):
        status = str(error.status()).removeprefix("StatusCode.")
        # tritonclient keeps the status of a stream and drops its metadata.
        return status, "SEQUENCE_LOST" if status == "ABORTED" else ""
    return error.code().name, str(dict(error.trailing_metadata() or ()).get(REASON_KEY, ""))


def sdk(bootstrap: Path) -> None:
    with connect_sync(bootstrap) as mesh, mesh.sequence(MODEL) as sequence:
        _say(event="began", node=sequence.infer(CALL).receipt.node)
        sys.stdin.readline()
        try:
            while True:
                sequence.infer(CALL)
        except MeshError as error:
            _say(event="ended", status=error.status.name, reason=error.reason, tries="1")


def _say(**event: str) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> None:
    way, region, state_path = sys.argv[1:]
    state = json.loads(Path(state_path).read_text())
    bootstrap = Path(state["bootstrap"][region])
    os.environ["GRPC_XDS_BOOTSTRAP"] = str(bootstrap)
    if way == "gateway":
        stock(TritonStream(state["gateways"][region]["address"]))
    elif way == "xds":
        stock(XdsStream(bootstrap))
    else:
        sdk(bootstrap)
    # Streams that broke leave threads behind in the libraries.
    os._exit(0)


if __name__ == "__main__":
    main()
