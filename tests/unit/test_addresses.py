"""Addresses in the form host:port, taken apart and put together."""

from __future__ import annotations

import pytest

from nearmesh import addresses
from nearmesh.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:7400", "127.0.0.1", 7400), ("cp.example:0", "cp.example", 0), ("[::1]:65535", "::1", 65535)],
)
def test_there_and_back(text: str, host: str, port: int) -> None:
    assert addresses.split(text) == (host, port)
    assert addresses.joined(host, port) == text


@pytest.mark.parametrize("wrong", ["", "7400", ":7400", "[]:1", "host:", "host:web", "host:-1", "host:65536", "host:²"])
def test_what_is_no_address(wrong: str) -> None:
    with pytest.raises(InvalidInput, match="is not host:port"):
        addresses.split(wrong)


def test_where_a_name_will_not_do() -> None:
    assert addresses.split_ip("[2001:DB8::0]:1") == ("2001:db8::", 1)
    for wrong in ("localhost:1", "10.0.0.1", "10.0.0.256:1"):
        with pytest.raises(InvalidInput, match="is not IP:port"):
            addresses.split_ip(wrong)
