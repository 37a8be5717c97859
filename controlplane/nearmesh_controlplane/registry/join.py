"""Joining: single-use tokens out, certificates in return for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from nearmesh import addresses
from nearmesh.errors import InvalidInput, JoinRefused
from nearmesh.ids import Kind, MachineId, check_label
from nearmesh.tls import Address, ip_of
from nearmesh.tokens import JoinTicket, TokenVerifier, new_token_id
from nearmesh_controlplane import database as tables
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.peers.role import Peer
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import Registry
from nearmesh_controlplane.registry.rows import node_from_row

# A join token is typed or copied into one machine soon after it was made.
MAX_JOIN_LIFETIME_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a machine that joins will find the control planes: host:port each, comma between."""

    public: str
    mesh: str

    @classmethod
    def of(cls, own_id: str, known: Iterable[Peer]) -> Addresses:
        """The one that answers first, then the others."""
        peers = sorted(known, key=lambda peer: peer.id != own_id)
        return cls(public=",".join(peer.public for peer in peers), mesh=",".join(peer.mesh for peer in peers))

    @property
    def ips(self) -> set[Address]:
        """Those that are no names."""
        hosts = [addresses.split(address)[0] for address in addresses.several(f"{self.public},{self.mesh}")]
        return {found for host in hosts if (found := ip_of(host))}


class Admission:
    """Issues join tokens and trades each of them once."""

    def __init__(
        self,
        db: Database,
        registry: Registry,
        authority: Authority,
        verifier: TokenVerifier,
        *,
        addresses: Callable[[], Addresses],
        certificate_lifetime: timedelta,
    ) -> None:
        self._db = db
        self._registry = registry
        self._authority = authority
        self._verifier = verifier
        self._addresses = addresses
        self._lifetime = certificate_lifetime

    async def create_token(self, kind: Kind, name: str, site: str, region: str, lifetime_s: float) -> tuple[str, float]:
        """A join token and when it expires, seconds since the epoch. Raises InvalidInput."""
        for what, value in (("node", name), ("site", site), ("region", region)):
            check_label(what, value)
        if name in self._registry.removed_ids():
            raise InvalidInput(f"node {name!r} was removed and its certificate may still be about; choose another name")
        if not 0 < lifetime_s <= MAX_JOIN_LIFETIME_S:
            raise InvalidInput(f"a join token lives between 0 and {MAX_JOIN_LIFETIME_S:.0f} s, not {lifetime_s}")
        found = self._addresses()
        ticket = JoinTicket(
            id=new_token_id(),
            mesh=self._authority.mesh,
            kind=kind,
            name=name,
            site=site,
            region=region,
            control_plane=found.public,
            control_plane_mesh=found.mesh,
            ca_pem=self._authority.ca_pem,
        )
        now_s = time.time()
        await self._db.run(_keep_token, ticket, now_s + lifetime_s)
        return self._authority.issuer.join(ticket, now_s=now_s, lifetime_s=lifetime_s), now_s + lifetime_s

    async def join(self, token: str, csr_pem: bytes) -> tuple[Node, bytes]:
        """The registered machine and its certificate. Raises JoinRefused, and then nothing has changed."""
        ticket = self._verifier.join(token)
        who = MachineId(ticket.mesh, ticket.kind, ticket.name)
        certificate = self._authority.sign(csr_pem, who, self._lifetime)
        node = await self._registry.register(lambda connection: _redeem(connection, ticket, time.time()))
        return node, certificate

    def renew(self, who: MachineId, csr_pem: bytes) -> bytes:
        """A new certificate for an identity that the caller has proven. Raises JoinRefused.

        A node's may hold for its address too, so that clients which check a server by its address find a node in the
        control plane's place. It may be any but the control plane's own: who had that could play the control plane.
        """
        return self._authority.sign(csr_pem, who, self._lifetime, self._may_be_a_nodes if who.kind == "node" else _none)

    def _may_be_a_nodes(self, address: Address) -> bool:
        if address.is_unspecified or address.is_multicast:
            return False
        # On loopback there is nobody but this machine.
        return address.is_loopback or address not in self._addresses().ips


def _none(_: Address) -> bool:
    return False


def _keep_token(connection: sa.Connection, ticket: JoinTicket, expires_at_s: float) -> None:
    row = {"id": ticket.id, "kind": ticket.kind, "name": ticket.name, "expires_at_s": expires_at_s}
    connection.execute(sa.insert(tables.join_tokens).values(**row))


def _redeem(connection: sa.Connection, ticket: JoinTicket, now_s: float) -> Node:
    token = tables.join_tokens
    used = connection.execute(
        sa.update(token).where(token.c.id == ticket.id, token.c.used_at_s.is_(None)).values(used_at_s=now_s)
    )
    if used.rowcount != 1:
        raise JoinRefused(f"join refused: the token for {ticket.name!r} was used already; ask for a new one")
    known = connection.execute(sa.select(tables.nodes).where(tables.nodes.c.id == ticket.name)).one_or_none()
    if known is not None and (known.removed or known.kind != ticket.kind):
        state = "removed" if known.removed else f"a {known.kind}"
        raise JoinRefused(f"join refused: {ticket.name!r} is {state}; choose another name")
    place = {"site": ticket.site, "region": ticket.region, "joined_at_s": now_s}
    if known is None:
        connection.execute(sa.insert(tables.nodes).values(id=ticket.name, kind=ticket.kind, **place))
    else:
        connection.execute(sa.update(tables.nodes).where(tables.nodes.c.id == ticket.name).values(**place))
    return node_from_row(connection.execute(sa.select(tables.nodes).where(tables.nodes.c.id == ticket.name)).one())
