"""The endpoints of a cluster: who takes the traffic, in which shares, and who stands by in which order."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache

from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2
from google.protobuf import wrappers_pb2

from nearmesh import addresses
from nearmesh.errors import InvalidInput
from nearmesh.routing.table import Endpoint
from nearmesh.xds import wire
from nearmesh.xds.resources import ENDPOINTS

log = logging.getLogger(__name__)

# What a share of 1 weighs.
WHOLE = 100


def assignment(cluster: str, endpoints: Iterable[Endpoint]) -> bytes:
    """An Any with the cluster's ClusterLoadAssignment: a locality for each endpoint.

    Those with a share are the first priority, weighted by it; each of the others is one of its own, so that when they
    fail all traffic stays on the next that lives. Neither gRPC nor Envoy resolves names in endpoints, and both refuse
    the whole set for one bad address: an endpoint that is not IP:port is left out.
    """
    localities, priority = [], -1
    for endpoint in endpoints:
        if socket_address(endpoint.address) is None:
            log.warning("left out node=%s cluster=%s: %r is not IP:port", endpoint.node, cluster, endpoint.address)
            continue
        # Without gaps, which gRPC refuses.
        priority = 0 if endpoint.share > 0 and priority <= 0 else priority + 1
        weight = max(1, round(endpoint.share * WHOLE))
        localities.append(_locality(endpoint.node, endpoint.site, endpoint.region, endpoint.address, priority, weight))
    return wire.any_of(ENDPOINTS, wire.load_assignment(cluster, localities))


# Nodes stand in the same few places in thousands of clusters.
@lru_cache(maxsize=65_536)
def _locality(node: str, site: str, region: str, address: str, priority: int, weight: int) -> bytes:
    # gRPC weighs localities, and Envoy, which is not asked to, endpoints.
    weighs = wrappers_pb2.UInt32Value(value=weight)
    member = endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(address=socket_address(address)), load_balancing_weight=weighs
    )
    found = endpoint_components_pb2.LocalityLbEndpoints(
        locality=base_pb2.Locality(region=region, zone=site, sub_zone=node),
        lb_endpoints=[member],
        load_balancing_weight=weighs,
        priority=priority,
    )
    return bytes(found.SerializeToString(deterministic=True))


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
