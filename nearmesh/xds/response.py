"""A DiscoveryResponse from resources that are serialized already.

A message's serialized form is its fields one after another, so what hundreds of streams are sent is copied and never
parsed or serialized again. Equal to what the generated class makes of the same fields; the tests compare them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from envoy.service.discovery.v3 import discovery_pb2

# Of a field with a length before its contents.
_DELIMITED = 2


def _tag(field: str) -> bytes:
    number = discovery_pb2.DiscoveryResponse.DESCRIPTOR.fields_by_name[field].number
    return bytes([number << 3 | _DELIMITED])


_VERSION, _RESOURCES, _TYPE, _NONCE = map(_tag, ("version_info", "resources", "type_url", "nonce"))


def response(type_url: str, version: str, resources: Iterable[bytes]) -> bytes:
    """A response whose nonce is its version; `resources` are serialized Anys."""
    parts = [_text(_VERSION, version)]
    for resource in resources:
        parts += (_RESOURCES, _varint(len(resource)), resource)
    parts += (_text(_TYPE, type_url), _text(_NONCE, version))
    return b"".join(parts)


def _text(tag: bytes, text: str) -> bytes:
    encoded = text.encode()
    return tag + _varint(len(encoded)) + encoded


@lru_cache(maxsize=4096)
def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
