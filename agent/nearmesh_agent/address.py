"""Which host a node tells the mesh to reach it at, when its configuration names none.

The address of the interface that leads to the control plane: in a private network or a public one that is where
others come from as well. Behind a translated address nobody but the operator knows it (`advertise_host`). It is an
IP, not a name: Envoy and gRPC take nothing else as an endpoint.
"""

from __future__ import annotations

import ipaddress
import logging
import socket

from nearmesh_agent.config import NodeConfig

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
# Reserved for documentation: nobody is there, but the way to it is the way to the rest of the world.
_ANYWHERE = "192.0.2.1"
# Nothing is sent to it; a datagram socket that has a peer has chosen its own address.
_ANY_PORT = 9


def advertised_host(config: NodeConfig, control_plane: str) -> str:
    """`advertise_host`, else the host that the public listener binds, else this machine's address on the way to
    `control_plane` (host:port). May wait for a name to be resolved."""
    bound = config.listen.public.rpartition(":")[0]
    if config.advertise_host:
        return config.advertise_host
    if not _is_every_address(bound):
        return bound
    found = own_address(control_plane.rpartition(":")[0].strip("[]"))
    log.info("advertise_host is not set, so clients are told %s", found)
    return found


def own_address(toward: str) -> str:
    """This machine's IP on the way to a host; an IPv6 one in brackets. Loopback when there is no way to anywhere."""
    for host in (toward, _ANYWHERE):
        for family, kind, _, _, address in _resolved(host):
            with socket.socket(family, kind) as probe:
                try:
                    probe.connect(address)
                except OSError:
                    continue
                own: str = probe.getsockname()[0]
            return f"[{own}]" if family == socket.AF_INET6 else own
    log.warning("this machine has no network; it advertises %s, where only itself finds it", LOOPBACK)
    return LOOPBACK


def _resolved(host: str) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    try:
        return socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)  # type: ignore[return-value]
    except OSError as error:
        log.warning("cannot resolve %s: %s", host, error)
        return []


def _is_every_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False
