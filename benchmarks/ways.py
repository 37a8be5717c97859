"""The ways of a request that are compared, from the engine alone to the whole mesh.

Those that users have are `nearmesh.devmesh.ways`; here are those below them, which show where the time goes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
from nearmesh_agent.engines.onnx.engine import OnnxEngine
from tritonclient.grpc import service_pb2_grpc

from nearmesh import tensors
from nearmesh.client.bootstrap import read_bootstrap
from nearmesh.devmesh.plan import MESH, MODELS, NODE_THREADS, node_of
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.devmesh.ways import RECEIPT, WAYS, Reply
from nearmesh.ids import node_server_name
from nearmesh.package import load
from nearmesh.packaging.sources import default_cache, fetch
from nearmesh.tensors import Array

# What each way is, in the order in which they are measured.
COMPARED = {
    "A": "ONNX Runtime in the caller's own process, with the node's threads and one call at a time",
    "B": "a plain gRPC stub to the node's own listener, with TLS and a token",
    "W": "as B, through the WAN proxy's link: what the emulation itself costs",
    "C": "a stock tritonclient through the Envoy gateway of its region",
    "D": "a gRPC channel on `xds:///MODEL`",
    "E": "the SDK, its blocking face",
}
FLOOR = "A"
# The names of the users' ways in `nearmesh.devmesh.ways`.
_OF_USERS = {"C": "gateway", "D": "xds", "E": "sdk"}


class Asked(Protocol):
    """What the ways have in common here. May be called from several threads."""

    def infer(self, model: str, inputs: Mapping[str, Array], *, objective: str = "", timeout_s: float = 10.0) -> Reply:
        """One inference, from arrays to arrays."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a client stands: what it knows of a local mesh. The addresses are of its own region."""

    region: str
    bootstrap: str
    gateway: str
    # The nearest node's public listener, and the WAN proxy's link to it.
    node: str
    link: str


def make(name: str, place: Place) -> Asked:
    """The way of that letter."""
    if name == FLOOR:
        return InProcess()
    if name in _OF_USERS:
        return WAYS[_OF_USERS[name]](place.gateway, Path(place.bootstrap))
    return Direct(place.node if name == "B" else place.link, place)


class InProcess:
    """The engine that a node would use, called without anything around it."""

    def __init__(self) -> None:
        self._engines = {model: _engine(model) for model in MODELS}
        # A replica has one instance; more callers than that wait, here as on a node.
        self._turn = threading.Lock()

    def infer(self, model: str, inputs: Mapping[str, Array], *, objective: str = "", timeout_s: float = 10.0) -> Reply:
        started = time.perf_counter()
        with self._turn:
            turn = time.perf_counter()
            outputs = self._engines[model].infer(inputs)
        ended = time.perf_counter()
        return Reply(
            outputs=outputs,
            node="",
            site="",
            total_ms=(ended - started) * 1000,
            service_ms=(ended - turn) * 1000,
        )

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()


def weights(model: str) -> Path:
    """The file of the variant that a CPU node serves; downloaded if it is not in the cache."""
    folder = CHECKOUT / "models" / model
    return fetch(load(folder).reference().source, folder, default_cache())


def _engine(model: str) -> OnnxEngine:
    return OnnxEngine.load(weights(model), load(CHECKOUT / "models" / model), threads=NODE_THREADS)


class Direct:
    """The least that a remote caller can do: one channel, one stub, the token as metadata."""

    def __init__(self, address: str, place: Place) -> None:
        settings = read_bootstrap(Path(place.bootstrap))
        options: list[tuple[str, Any]] = [
            ("grpc.ssl_target_name_override", node_server_name(MESH, node_of(place.region))),
            ("grpc.max_receive_message_length", -1),
        ]
        self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(settings.ca_pem), options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = [("authorization", f"Bearer {settings.token}")]

    def infer(self, model: str, inputs: Mapping[str, Array], *, objective: str = "", timeout_s: float = 10.0) -> Reply:
        started = time.perf_counter()
        request = tensors.encode_request(model, inputs)
        request.parameters[RECEIPT].bool_param = True
        response = self._stub.ModelInfer(request, metadata=self._metadata, timeout=timeout_s)
        outputs = tensors.decode_response(response)
        return Reply(
            outputs=outputs,
            node=response.parameters["nearmesh_node"].string_param,
            site=response.parameters["nearmesh_site"].string_param,
            total_ms=(time.perf_counter() - started) * 1000,
            service_ms=response.parameters["nearmesh_service_ms"].double_param,
        )

    def close(self) -> None:
        self._channel.close()
