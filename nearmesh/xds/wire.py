"""Messages put together from parts that are serialized already.

A message's serialized form is its fields one after another, so what hundreds of streams are sent, and nodes that stand
in thousands of clusters, are serialized once and copied from then on. Equal to what the generated classes make of the
same fields; the tests compare them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2
from google.protobuf.message import Message

# Of a field with a length before its contents.
_DELIMITED = 2


def _tag(message: type[Message], field: str) -> bytes:
    return bytes([message.DESCRIPTOR.fields_by_name[field].number << 3 | _DELIMITED])


_RESPONSE = discovery_pb2.DiscoveryResponse
_VERSION, _RESOURCES = _tag(_RESPONSE, "version_info"), _tag(_RESPONSE, "resources")
_TYPE, _NONCE = _tag(_RESPONSE, "type_url"), _tag(_RESPONSE, "nonce")
_ANY_TYPE, _ANY_VALUE = _tag(any_pb2.Any, "type_url"), _tag(any_pb2.Any, "value")
_ASSIGNMENT = endpoint_pb2.ClusterLoadAssignment
_CLUSTER, _LOCALITIES = _tag(_ASSIGNMENT, "cluster_name"), _tag(_ASSIGNMENT, "endpoints")


def response(type_url: str, version: str, resources: Iterable[bytes]) -> bytes:
    """A DiscoveryResponse whose nonce is its version; `resources` are Anys."""
    parts = [*_field(_VERSION, version.encode())]
    for resource in resources:
        parts += _field(_RESOURCES, resource)
    parts += _field(_TYPE, type_url.encode())
    parts += _field(_NONCE, version.encode())
    return b"".join(parts)


def load_assignment(cluster: str, localities: Iterable[bytes]) -> bytes:
    """A ClusterLoadAssignment; `localities` are LocalityLbEndpoints."""
    parts = [*_field(_CLUSTER, cluster.encode())]
    for locality in localities:
        parts += _field(_LOCALITIES, locality)
    return b"".join(parts)


def any_of(type_url: str, message: bytes) -> bytes:
    """An Any that holds a message of that type."""
    return b"".join((*_field(_ANY_TYPE, type_url.encode()), *_field(_ANY_VALUE, message)))


def _field(tag: bytes, contents: bytes) -> tuple[bytes, bytes, bytes]:
    return tag, _varint(len(contents)), contents


@lru_cache(maxsize=4096)
def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
