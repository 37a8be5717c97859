"""What both kinds of xDS resources are made of: type names, names of clusters, and packing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from google.protobuf import any_pb2
from google.protobuf.message import Message

from nearmesh.routing.table import Endpoint, ModelRoutes

_TYPES = "type.googleapis.com/"
LISTENER = _TYPES + "envoy.config.listener.v3.Listener"
ROUTES = _TYPES + "envoy.config.route.v3.RouteConfiguration"
CLUSTER = _TYPES + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = _TYPES + "envoy.config.endpoint.v3.ClusterLoadAssignment"

# Clusters and their endpoints go out before the listeners and routes that name them.
PUSH_ORDER = (CLUSTER, ENDPOINTS, LISTENER, ROUTES)

STREAM_INFER_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
# The header (gRPC metadata key) that keeps the unary calls of one sequence together: any text, the same in all of them.
SEQUENCE_HEADER = "nearmesh-sequence"
_SEQUENCES = "/nearest/sequences"

# Resources by type and name, each packed and serialized, so that a comparison of bytes tells what changed.
Resources = Mapping[str, Mapping[str, bytes]]


def packed(message: Message) -> bytes:
    """A serialized Any; equal messages give equal bytes."""
    return any_of(message).SerializeToString(deterministic=True)


def any_of(message: Message) -> any_pb2.Any:
    """The message in an Any, serialized the same way each time."""
    wrapped = any_pb2.Any()
    wrapped.Pack(message, deterministic=True)
    return wrapped


def typed(name: str, **fields: Any) -> dict[str, Any]:
    """The JSON form of an Any that holds the message of that full name."""
    return {"@type": _TYPES + name} | fields


def cluster_name(model: str, objective: str | None) -> str:
    """`MODEL` follows the model's policy, `MODEL/OBJECTIVE` a call's own wish."""
    return model if objective is None else f"{model}/{objective}"


def sequence_cluster(model: str) -> str:
    """The cluster of calls that name their sequence; what it carries counts as asked for the nearest."""
    return model + _SEQUENCES


def keeps_sequences(cluster: str) -> bool:
    """Whether a hash chooses among its endpoints."""
    return cluster.endswith(_SEQUENCES)


def model_of(name: str) -> str:
    """The model that a listener, a cluster or a cluster's endpoints belong to."""
    return name.partition("/")[0]


def model_clusters(model: str, routes: ModelRoutes) -> Iterator[tuple[str, tuple[Endpoint, ...]]]:
    """The model's clusters by name, each with its endpoints: its policy's, one for each objective, and the sequences'.

    Among the nodes that share the nearest's requests a sequence's own hash chooses, all of them alike: neither a price
    nor a share that shifts moves one that lives.
    """
    yield cluster_name(model, None), routes.by_objective[routes.default_objective]
    for objective, members in routes.by_objective.items():
        yield cluster_name(model, objective), members
    nearest = routes.by_objective.get("nearest", ())
    yield sequence_cluster(model), tuple(replace(node, share=1.0) if node.share > 0 else node for node in nearest)


def node_identities(mesh: str) -> dict[str, str]:
    """Matches the name in every node's certificate, and in no gateway's."""
    return {"prefix": f"spiffe://{mesh}/node/"}
