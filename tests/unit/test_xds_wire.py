"""What is put together from serialized parts is what the generated classes would have made of them."""

from __future__ import annotations

import pytest
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from nearmesh.xds.resources import PUSH_ORDER, packed
from nearmesh.xds.wire import any_of, load_assignment, response


@pytest.mark.parametrize("type_url", PUSH_ORDER)
@pytest.mark.parametrize("sizes", [(), (0,), (1, 100), (90, 127, 128, 16_383, 16_384), (3_000_000,)])
@pytest.mark.parametrize("version", ["1", "128", "9" * 200])
def test_a_response(type_url: str, sizes: tuple[int, ...], version: str) -> None:
    resources = [any_pb2.Any(type_url=type_url, value=b"x" * size) for size in sizes]
    whole = discovery_pb2.DiscoveryResponse(
        version_info=version, resources=resources, type_url=type_url, nonce=version
    ).SerializeToString(deterministic=True)
    assert response(type_url, version, [one.SerializeToString() for one in resources]) == whole


@pytest.mark.parametrize("count", [0, 1, 16, 1000])
def test_an_assignment_in_an_any(count: int) -> None:
    localities = [
        endpoint_components_pb2.LocalityLbEndpoints(
            locality=base_pb2.Locality(region=f"r-{number}", zone="z" * number), priority=number
        )
        for number in range(count)
    ]
    whole = packed(endpoint_pb2.ClusterLoadAssignment(cluster_name="m/nearest", endpoints=localities))
    type_url = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
    parts = load_assignment("m/nearest", [one.SerializeToString() for one in localities])
    assert any_of(type_url, parts) == whole
