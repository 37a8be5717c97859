"""The three ways into the mesh, behind one face: for the demonstration, load and fault tests, and benchmarks.

Each is what a user would write: a stock tritonclient that knows a gateway's address, a plain gRPC channel on
`xds:///`, and the SDK. None of them retries by itself beyond what its library does.
"""

from __future__ import annotations

import json
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2_grpc

from nearmesh import tensors
from nearmesh.client import Answer, connect_sync
from nearmesh.routing import OBJECTIVE_HEADER, Objective, parse_objective

Array = npt.NDArray[Any]

RECEIPT = "nearmesh_receipt"
# A whole request is kept for a retry; several megabytes of it.
RETRY_BUFFER_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer with where it came from."""

    outputs: Mapping[str, Array]
    node: str
    site: str
    total_ms: float
    # Time on the node, from bytes in to bytes out.
    service_ms: float
    # The SDK asked a second node because the first took longer than forecast, so either may have answered.
    hedged: bool = False
    # Which attempt the answering node got, by gRPC's or a gateway's count; 1 for the first.
    attempt: int = 1
    # Why that node, and what came before it; the SDK alone knows.
    why: str = ""
    # The model version that answered, as its receipt names it.
    version: str = ""
    digest: str = ""

    @property
    def network_ms(self) -> float:
        return self.total_ms - self.service_ms


class Way(Protocol):
    """One way into the mesh. May be called from several threads."""

    def infer(self, model: str, inputs: Mapping[str, Array], *, objective: str = "", timeout_s: float = 10.0) -> Reply:
        """One idempotent unary inference. Raises what the library behind it raises."""
        ...

    def sequence(
        self, model: str, calls: Sequence[Mapping[str, Array]], *, objective: str = "", timeout_s: float = 30.0
    ) -> list[Reply]:
        """All calls of one sequence over one stream, sent without waiting for each other where the way allows."""
        ...

    def close(self) -> None: ...


class GatewayWay:
    """A stock tritonclient, unchanged, in plain text to a gateway on this machine."""

    def __init__(self, address: str) -> None:
        self._client = triton.InferenceServerClient(address)
        self._address = address

    def infer(self, model: str, inputs: Mapping[str, Array], *, objective: str = "", timeout_s: float = 10.0) -> Reply:
        started = time.perf_counter()
        result = self._client.infer(
            model,
            [_triton_input(name, array) for name, array in inputs.items()],
            headers=_headers(objective),
            parameters={RECEIPT: True},
            client_timeout=timeout_s,
        )
        return _reply(result.get_response(), started)

    def sequence(
        self, model: str, calls: Sequence[Mapping[str, Array]], *, objective: str = "", timeout_s: float = 30.0
    ) -> list[Reply]:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        sent: list[float] = []
        with triton.InferenceServerClient(self._address) as client:
            client.start_stream(lambda result, error: answers.put((result, error)), headers=_headers(objective))
            for number, inputs in enumerate(calls):
                sent.append(time.perf_counter())
                client.async_stream_infer(
                    model,
                    [_triton_input(name, array) for name, array in inputs.items()],
                    parameters={RECEIPT: True},
                    sequence_id=1,
                    sequence_start=number == 0,
                    sequence_end=number == len(calls) - 1,
                )
            replies = []
            for started in sent:
                result, error = answers.get(timeout=timeout_s)
                if error:
                    raise error
                replies.append(_reply(result.get_response(), started))
            return replies

    def close(self) -> None:
        self._client.close()


class XdsWay:
    """A plain gRPC channel for each model on `xds:///MODEL`, with the mesh's credentials; `GRPC_XDS_BOOTSTRAP` must
    name the bootstrap file before gRPC is first used in the process."""

    def __init__(self, bootstrap: Path) -> None:
        content = json.loads(bootstrap.read_text())
        if os.environ.get("GRPC_XDS_BOOTSTRAP") != str(bootstrap):
            raise RuntimeError(f"set GRPC_XDS_BOOTSTRAP={bootstrap} before starting this process")
        ca = Path(content["xds_servers"][0]["channel_creds"][0]["config"]["ca_certificate_file"]).read_bytes()
        token = content["node"]["metadata"]["token"]
        self._credentials = grpc.composite_channel_credentials(
            grpc.xds_channel_credentials(grpc.ssl_channel_credentials(ca)), grpc.access_token_call_credentials(token)
        )
        self._channels: dict[str, grpc.Channel] = {}

    def _stub(self, model: str) -> Any:
        if model not in self._channels:
            options = [
                ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
                ("grpc.max_receive_message_length", -1),
            ]
            self._channels[model] = grpc.secure_channel(f"xds:///{model}", self._credentials, options=options)
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channels[model])

    def infer(self, model: str, inputs: Mapping[str, Array], *, objective: str = "", timeout_s: float = 10.0) -> Reply:
        started = time.perf_counter()
        request = _request(model, inputs)
        response = self._stub(model).ModelInfer(request, metadata=_metadata(objective), timeout=timeout_s)
        return _reply(response, started)

    def sequence(
        self, model: str, calls: Sequence[Mapping[str, Array]], *, objective: str = "", timeout_s: float = 30.0
    ) -> list[Reply]:
        sent: list[float] = []

        def requests() -> Iterator[Any]:
            for number, inputs in enumerate(calls):
                request = _request(model, inputs)
                request.parameters["sequence_id"].int64_param = 1
                request.parameters["sequence_start"].bool_param = number == 0
                request.parameters["sequence_end"].bool_param = number == len(calls) - 1
                sent.append(time.perf_counter())
                yield request

        stream = self._stub(model).ModelStreamInfer(requests(), metadata=_metadata(objective), timeout=timeout_s)
        replies: list[Reply] = []
        for answer in stream:
            if answer.error_message:
                raise RuntimeError(answer.error_message)
            replies.append(_reply(answer.infer_response, sent[len(replies)]))
        return replies

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()


class SdkWay:
    """The SDK's face for scripts."""

    def __init__(self, bootstrap: Path) -> None:
        self._mesh = connect_sync(bootstrap).__enter__()

    def infer(self, model: str, inputs: Mapping[str, Array], *, objective: str = "", timeout_s: float = 10.0) -> Reply:
        return _sdk_reply(self._mesh.infer(model, inputs, objective=_objective(objective), deadline_s=timeout_s))

    def sequence(
        self, model: str, calls: Sequence[Mapping[str, Array]], *, objective: str = "", timeout_s: float = 30.0
    ) -> list[Reply]:
        with self._mesh.sequence(model, objective=_objective(objective)) as sequence:
            return [_sdk_reply(sequence.infer(inputs)) for inputs in calls]

    def close(self) -> None:
        self._mesh.__exit__(None, None, None)


WAYS: Mapping[str, Callable[[str, Path], Way]] = {
    "gateway": lambda gateway, bootstrap: GatewayWay(gateway),
    "xds": lambda gateway, bootstrap: XdsWay(bootstrap),
    "sdk": lambda gateway, bootstrap: SdkWay(bootstrap),
}


def _objective(text: str) -> Objective | None:
    return parse_objective(text) if text else None


def _sdk_reply(answer: Answer) -> Reply:
    receipt = answer.receipt
    return Reply(
        outputs=answer,
        node=receipt.node,
        site=receipt.site,
        total_ms=receipt.total_ms,
        service_ms=receipt.total_ms - receipt.network_ms,
        hedged=receipt.hedged,
        why="; ".join([receipt.why, *(f"after {a.node}: {a.error}" for a in receipt.attempts if a.error)]),
        version=answer.version,
        digest=receipt.digest,
    )


def _triton_input(name: str, array: Array) -> triton.InferInput:
    found = triton.InferInput(name, list(array.shape), triton.np_to_triton_dtype(array.dtype))
    found.set_data_from_numpy(np.asarray(array, order="C"))
    return found


def _request(model: str, inputs: Mapping[str, Array]) -> Any:
    request = tensors.encode_request(model, inputs)
    request.parameters[RECEIPT].bool_param = True
    return request


def _headers(objective: str) -> dict[str, str] | None:
    return {OBJECTIVE_HEADER: objective} if objective else None


def _metadata(objective: str) -> list[tuple[str, str]]:
    return [(OBJECTIVE_HEADER, objective)] if objective else []


def _reply(response: Any, started: float) -> Reply:
    total_ms = (time.perf_counter() - started) * 1000
    parameters = response.parameters
    return Reply(
        outputs=tensors.decode_response(response),
        node=parameters["nearmesh_node"].string_param,
        site=parameters["nearmesh_site"].string_param,
        total_ms=total_ms,
        service_ms=parameters["nearmesh_service_ms"].double_param,
        attempt=parameters["nearmesh_attempt"].int64_param,
        version=response.model_version,
        digest=parameters["nearmesh_digest"].string_param,
    )
