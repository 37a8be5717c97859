"""Ports for servers that must come back on the same one after a restart."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

from nearmesh.errors import ConfigError

_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000
# Where the kernel's range is unknown; Linux's default.
_DEFAULT_EPHEMERAL = 32_768


def free_ports(count: int) -> list[int]:
    """Ports on loopback that were free a moment ago, all different.

    Below the ephemeral range: a port in it could be taken by some outgoing connection while its server is down. Raises
    ConfigError when the machine has too few.
    """
    candidates = list(range(_LOWEST, _ephemeral_start()))
    random.SystemRandom().shuffle(candidates)
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in candidates:
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise ConfigError(f"this machine has no {count} free ports between {_LOWEST} and {_ephemeral_start()}")


def _ephemeral_start() -> int:
    try:
        return max(_LOWEST + 1000, int(_RANGE_FILE.read_text().split()[0]))
    except (OSError, ValueError):
        return _DEFAULT_EPHEMERAL
