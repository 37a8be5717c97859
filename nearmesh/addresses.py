"""How a listener's address is written, `host:port` with an IPv6 host in brackets, and a port where one is free."""

from __future__ import annotations

import ipaddress
import socket

from nearmesh.errors import InvalidInput


def joined(host: str, port: int) -> str:
    """`host:port`, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """Host, without brackets, and port. Raises InvalidInput."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise InvalidInput(f"address {address!r} is not host:port")
    return host, int(port)


def is_address(text: str) -> bool:
    """Whether it is host:port."""
    try:
        split(text)
    except InvalidInput:
        return False
    return True


def split_ip(address: str) -> tuple[str, int]:
    """The same where a name will not do. Raises InvalidInput."""
    try:
        host, port = split(address)
        return str(ipaddress.ip_address(host)), port
    except (InvalidInput, ValueError):
        raise InvalidInput(f"address {address!r} is not IP:port") from None


def several(text: str) -> tuple[str, ...]:
    """The addresses in a list with commas between, each once: of control planes, of which any may answer."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def free_port(host: str) -> int:
    """A port that was free a moment ago, for a program that must be told a number."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
