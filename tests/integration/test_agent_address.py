"""Which of this machine's addresses an agent finds out as its own; the routing table answers, nothing is sent."""

from __future__ import annotations

import ipaddress

import pytest
from nearmesh_agent.address import own_address


def test_toward_a_control_plane_on_this_machine_it_is_loopback() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert own_address("localhost") in ("127.0.0.1", "[::1]")


def test_a_name_that_cannot_be_resolved_leads_to_the_way_to_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    found = own_address("no-such-host.invalid")
    assert ipaddress.ip_address(found)
    assert "no-such-host.invalid" in caplog.text
