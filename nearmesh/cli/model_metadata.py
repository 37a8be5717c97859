"""What a model takes and gives, asked of a node that serves it."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh.cli.place import Place
from nearmesh.cli.tensor_input import Spec
from nearmesh.errors import MeshError, NoRoute
from nearmesh.rpc import from_rpc_error
from nearmesh.v1 import route_pb2

# A connection and one small answer, from the far side of the earth; then the next node is asked.
_LIMIT_S = 3.0


@dataclass(frozen=True, slots=True)
class Metadata:
    """A model's inputs and outputs by name."""

    inputs: dict[str, Spec]
    outputs: dict[str, Spec]


async def ask(place: Place, route: route_pb2.Route) -> Metadata:
    """From the first node of the route that answers. Raises NoRoute, or the last node's error."""
    error: MeshError = NoRoute(f"no node serves {route.model!r} now; `nearmesh model show {route.model}` says why")
    for candidate in route.candidates:
        if not candidate.ready:
            continue
        try:
            return await _ask_one(place, route.model, candidate)
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(failure)
    raise error


async def _ask_one(place: Place, model: str, candidate: route_pb2.Candidate) -> Metadata:
    credentials = grpc.ssl_channel_credentials(place.ca_pem)
    options = (("grpc.ssl_target_name_override", candidate.server_name),)
    async with grpc.aio.secure_channel(candidate.address, credentials, options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = await stub.ModelMetadata(
            service_pb2.ModelMetadataRequest(name=model),
            timeout=_LIMIT_S,
            metadata=(("authorization", f"Bearer {place.token}"),),
        )
    return Metadata(
        *({t.name: Spec(t.name, t.datatype, tuple(t.shape)) for t in s} for s in (found.inputs, found.outputs))
    )
