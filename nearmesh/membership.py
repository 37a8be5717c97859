"""How a machine becomes a member of a mesh and stays one: joining with a token, and renewing its certificate."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from nearmesh import addresses
from nearmesh.errors import ConfigError, DeadlineExceeded, InvalidInput, JoinRefused, MeshError, Unreachable
from nearmesh.ids import Kind, MachineId
from nearmesh.rpc import from_rpc_error
from nearmesh.tls import (
    Credentials,
    addresses_in,
    certificate_request,
    ip_of,
    key_from_pem,
    key_to_pem,
    new_key,
    write_private,
)
from nearmesh.tokens import read_join_token
from nearmesh.turns import Turns
from nearmesh.v1 import node_pb2, node_pb2_grpc

log = logging.getLogger(__name__)

MEMBERSHIP_FILE = "membership.json"
# A control plane that does not answer a join within this is not there.
JOIN_TIMEOUT_S = 20.0
# Between attempts to renew, unless the certificate ends so soon that only a quarter of the rest can be waited.
RENEW_RETRY_S = 30.0
# A machine whose clock is wrong must not ask without end.
RENEW_AT_LEAST_S = 1.0


# Of a machine's channels to mesh listeners: notices a dead path although nothing is being sent.
KEEPALIVE: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Also how long a connection may take: a host that is gone does not even refuse.
    ("grpc.min_reconnect_backoff_ms", 2000),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Who this machine is in which mesh, and where the control plane is. Kept beside its credentials."""

    mesh: str
    kind: Kind
    id: str
    site: str
    region: str
    # host:port of the control planes' public and mesh listeners, comma between.
    control_plane: str
    control_plane_mesh: str
    jwks_json: str

    @property
    def machine(self) -> MachineId:
        return MachineId(self.mesh, self.kind, self.id)

    @classmethod
    def read(cls, folder: Path) -> Membership | None:
        """What `write` left in `folder`, or None. Raises ConfigError when the file is damaged."""
        path = folder / MEMBERSHIP_FILE
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({error}); remove the folder and join again") from None

    def write(self, folder: Path) -> None:
        write_private(folder / MEMBERSHIP_FILE, json.dumps(asdict(self), indent=1).encode())


async def join(token: str, kind: Kind, folder: Path) -> Membership:
    """Makes a key here, has it certified, and keeps both in `folder`; the key never leaves the machine.

    Raises InvalidInput for something that is not a join token of that kind, JoinRefused, Unreachable.
    """
    ticket = read_join_token(token)
    if ticket.kind != kind:
        raise InvalidInput(f"this token lets a {ticket.kind} join, not a {kind}")
    key = new_key()
    who = MachineId(ticket.mesh, ticket.kind, ticket.name)
    request = node_pb2.JoinRequest(token=token.strip(), csr_pem=certificate_request(key, who))
    credentials = grpc.ssl_channel_credentials(ticket.ca_pem)
    try:
        answer = await _first_answer(
            addresses.several(ticket.control_plane),
            credentials,
            lambda node: node.Join(request, timeout=JOIN_TIMEOUT_S),
        )
    except MeshError as error:
        raise _join_error(error, ticket.control_plane) from None
    membership = Membership(
        mesh=ticket.mesh,
        kind=kind,
        id=ticket.name,
        site=ticket.site,
        region=ticket.region,
        control_plane=ticket.control_plane,
        control_plane_mesh=ticket.control_plane_mesh,
        jwks_json=answer.jwks_json,
    )
    membership.write(folder)
    Credentials(key_to_pem(key), answer.certificate_pem, answer.ca_pem).write(folder)
    log.info("joined mesh=%s id=%s site=%s region=%s", who.mesh, who.id, ticket.site, ticket.region)
    return membership


async def _first_answer(
    control_planes: Iterable[str], credentials: grpc.ChannelCredentials, ask: Callable[[Any], Awaitable[Any]]
) -> Any:
    """Of several control planes the first that is there; any may answer. Raises its error, or the last one's."""
    found: MeshError = Unreachable("no control plane is known")
    for address in control_planes:
        async with grpc.aio.secure_channel(address, credentials) as channel:
            try:
                return await ask(node_pb2_grpc.NodeServiceStub(channel))
            except grpc.RpcError as error:
                found = from_rpc_error(error)
        if not isinstance(found, Unreachable | DeadlineExceeded):
            break
    raise found


def _join_error(error: MeshError, address: str) -> MeshError:
    """A refusal as it is; when nobody answered, where it was tried and who says so."""
    if not isinstance(error, Unreachable | DeadlineExceeded):
        return error
    return Unreachable(
        f"no control plane of this mesh answers at {address}, where the join token says it is ({error.message}). Does "
        "it run, is the port open from here, and is `advertise_host` in its mesh.toml a host that this machine reaches?"
    )


async def member(folder: Path, kind: Kind, token: str | None) -> Membership:
    """The membership kept in `folder`, or a new one through `token`. Raises ConfigError when there is neither.

    With a certificate that has ended the control plane takes no call any more, not even for a renewal: only a new token
    leads back.
    """
    known = Membership.read(folder)
    credentials = Credentials.read(folder)
    if known and credentials:
        if credentials.left_s() > 0:
            return known
        if not token:
            log.error(
                "the certificate of %s ended %s, so nobody in the mesh trusts this machine: give a new join token "
                "(`nearmesh node token` makes one) and start it again",
                known.id,
                credentials.expires_at,
            )
            return known
        log.warning("the certificate of %s ended %s; joining again", known.id, credentials.expires_at)
    elif not token:
        raise ConfigError(f"{folder} holds no membership yet: give a join token (`nearmesh node token` makes one)")
    return await join(token, kind, folder)


class Renewal:
    """Keeps a machine's certificate young. `current` is what to show now."""

    def __init__(self, membership: Membership, folder: Path, host: str = "") -> None:
        """`host` is where clients reach this machine; if it is an IP, the certificate is to hold for it too."""
        self._address = ip_of(host)
        self._membership = membership
        self._folder = folder
        found = Credentials.read(folder)
        if found is None:
            raise ConfigError(f"{folder} holds no certificate; remove it and join again")
        self.current = found
        # Their mesh listeners.
        self.control_planes = Turns(addresses.several(membership.control_plane_mesh))

    def learn(self, control_planes: Iterable[str]) -> None:
        """The mesh's control planes as one of them named them; kept for the next start."""
        if not self.control_planes.learn(control_planes):
            return
        self._membership = replace(self._membership, control_plane_mesh=",".join(self.control_planes.order))
        log.info("control planes are at %s", self._membership.control_plane_mesh)
        try:
            self._membership.write(self._folder)
        except OSError as error:
            log.warning("the control planes' addresses were not kept: %s", error)

    async def run(self) -> None:
        """Renews when two thirds of the certificate's life are over, for ever; tries again when it fails.

        Soon after the start if it does not hold for the machine's address.
        """
        while True:
            await asyncio.sleep(self._wait_s())
            try:
                await self._renew()
            except (MeshError, OSError) as error:
                if isinstance(error, JoinRefused) and self._address:
                    # The rest of the certificate matters more.
                    log.warning("the certificate will not hold for the address %s: %s", self._address, error)
                    self._address = None
                    continue
                # Also a full disk: it may be emptied while the certificate still lasts.
                log.warning("renewal failed, the certificate ends %s: %s", self.current.expires_at, error)
                left_s = self.current.left_s()
                wait_s = min(RENEW_RETRY_S, left_s / 4) if left_s else RENEW_RETRY_S
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))

    def _wait_s(self) -> float:
        if self._address and self._address not in addresses_in(self.current.certificate):
            return RENEW_AT_LEAST_S
        return max(RENEW_AT_LEAST_S, self.current.renew_in_s())

    async def _renew(self) -> None:
        csr = certificate_request(key_from_pem(self.current.key_pem), self._membership.machine, self._address)
        request = node_pb2.RenewRequest(csr_pem=csr)
        answer = await _first_answer(
            self.control_planes.order,
            self.current.channel_credentials(),
            lambda node: node.Renew(request, timeout=JOIN_TIMEOUT_S),
        )
        renewed = Credentials(self.current.key_pem, answer.certificate_pem, answer.ca_pem)
        renewed.write(self._folder)
        self.current = renewed
        self.learn(answer.control_planes)
        if self._address and self._address not in addresses_in(renewed.certificate):
            # From an older control plane, which would say the same again.
            log.warning("the certificate does not hold for the address %s: nobody put it in", self._address)
            self._address = None
        log.info("certificate renewed id=%s until=%s", self._membership.id, self.current.expires_at)
