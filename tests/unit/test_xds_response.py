"""A response put together from serialized parts is what the generated class would have made of them."""

from __future__ import annotations

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from nearmesh.xds.resources import PUSH_ORDER
from nearmesh.xds.response import response


@pytest.mark.parametrize("type_url", PUSH_ORDER)
@pytest.mark.parametrize("sizes", [(), (0,), (1, 100), (90, 127, 128, 16_383, 16_384), (3_000_000,)])
@pytest.mark.parametrize("version", ["1", "128", "9" * 200])
def test_parts_and_class_give_the_same_bytes(type_url: str, sizes: tuple[int, ...], version: str) -> None:
    resources = [any_pb2.Any(type_url=type_url, value=b"x" * size) for size in sizes]
    whole = discovery_pb2.DiscoveryResponse(
        version_info=version, resources=resources, type_url=type_url, nonce=version
    ).SerializeToString(deterministic=True)
    assert response(type_url, version, [one.SerializeToString() for one in resources]) == whole
