"""How a listener's address is written: `host:port`, where an IPv6 host stands in brackets."""

from __future__ import annotations

import ipaddress

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
