"""What both kinds of xDS resources are made of: type names, packing, and endpoints in order of preference."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from google.protobuf import any_pb2, wrappers_pb2
from google.protobuf.message import Message

from nearmesh import addresses
from nearmesh.errors import InvalidInput
from nearmesh.routing.table import Endpoint, ModelRoutes

log = logging.getLogger(__name__)

_TYPES = "type.googleapis.com/"
LISTENER = _TYPES + "envoy.config.listener.v3.Listener"
ROUTES = _TYPES + "envoy.config.route.v3.RouteConfiguration"
CLUSTER = _TYPES + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = _TYPES + "envoy.config.endpoint.v3.ClusterLoadAssignment"

# Clusters and their endpoints go out before the listeners and routes that name them.
PUSH_ORDER = (CLUSTER, ENDPOINTS, LISTENER, ROUTES)

# What a share of 1 weighs.
WHOLE = 100

STREAM_INFER_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"

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


def model_of(name: str) -> str:
    """The model that a listener, a cluster or a cluster's endpoints belong to."""
    return name.partition("/")[0]


def model_clusters(model: str, routes: ModelRoutes) -> Iterator[tuple[str, tuple[Endpoint, ...]]]:
    """The model's clusters by name, each with its endpoints: its policy's, and one for each objective."""
    yield cluster_name(model, None), routes.by_objective[routes.default_objective]
    for objective, members in routes.by_objective.items():
        yield cluster_name(model, objective), members


def node_identities(mesh: str) -> dict[str, str]:
    """Matches the name in every node's certificate, and in no gateway's."""
    return {"prefix": f"spiffe://{mesh}/node/"}


def load_assignment(cluster: str, endpoints: Iterable[Endpoint]) -> endpoint_pb2.ClusterLoadAssignment:
    """A locality for each endpoint. Those with a share are the first priority, weighted by it; each of the others is
    one of its own, so that when they fail all traffic stays on the next that lives.

    Neither gRPC nor Envoy resolves names in endpoints, and both refuse the whole set for one bad address: an endpoint
    that is not IP:port is left out.
    """
    assignment = endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster)
    for endpoint in endpoints:
        address = socket_address(endpoint.address)
        if address is None:
            log.warning("left out node=%s cluster=%s: %r is not IP:port", endpoint.node, cluster, endpoint.address)
            continue
        # Priorities must have no gaps.
        sharing = endpoint.share > 0 and all(other.priority == 0 for other in assignment.endpoints)
        last = assignment.endpoints[-1].priority if assignment.endpoints else -1
        _add_locality(assignment, endpoint, address, priority=0 if sharing else last + 1)
    return assignment


def _add_locality(
    assignment: endpoint_pb2.ClusterLoadAssignment,
    endpoint: Endpoint,
    address: address_pb2.Address,
    *,
    priority: int,
) -> None:
    # gRPC weighs localities, and Envoy, which is not asked to, endpoints.
    weight = wrappers_pb2.UInt32Value(value=max(1, round(endpoint.share * WHOLE)))
    member = endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(address=address), load_balancing_weight=weight
    )
    assignment.endpoints.add(
        locality=base_pb2.Locality(region=endpoint.region, zone=endpoint.site, sub_zone=endpoint.node),
        lb_endpoints=[member],
        load_balancing_weight=weight,
        priority=priority,
    )


# The same few nodes stand in every cluster of every region.
@lru_cache(maxsize=16_384)
def socket_address(text: str) -> address_pb2.Address | None:
    """`IP:port` or `[IPv6]:port` as xDS writes it, or None when it is neither."""
    try:
        ip, port = addresses.split_ip(text)
    except InvalidInput:
        return None
    if port == 0:
        return None
    return address_pb2.Address(socket_address=address_pb2.SocketAddress(address=ip, port_value=port))
