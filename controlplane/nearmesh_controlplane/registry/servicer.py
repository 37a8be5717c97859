"""NodeService: join, renew, and the session that is a node's lease."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from nearmesh.errors import DeadlineExceeded, InvalidInput, PermissionDenied
from nearmesh.ids import Kind, MachineId
from nearmesh.rpc import Identity, caller, shown_key
from nearmesh.v1 import node_pb2 as pb
from nearmesh.v1 import node_pb2_grpc
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.peers.role import Role
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.join import Admission
from nearmesh_controlplane.registry.nodes import Registry

log = logging.getLogger(__name__)

# A node says hello as soon as it has connected.
HELLO_WITHIN_S = 10.0
# A live node reports about once a second; one that has been silent for this long is frozen or cut off.
SILENCE_S = 4.0
# A node is told of changes no more often than this.
TELL_EVERY_S = 0.1


class NodeServicer(node_pb2_grpc.NodeServiceServicer):
    """Answers machines."""

    def __init__(
        self,
        authority: Authority,
        admission: Admission,
        registry: Registry,
        changes: Generation,
        wanted: Callable[[str], pb.WantedState],
        role: Role,
        measured: Callable[[str, pb.NodeStatus], None] = lambda node, status: None,
        trains: Callable[[str, pb.NodeStatus, str], None] = lambda node, status, key: None,
    ) -> None:
        """`measured` hears each report of a node, once the registry knows it.

        `trains` does too, with the key of the certificate that the node showed, as an OpenSSH line.
        """
        self._authority = authority
        self._admission = admission
        self._registry = registry
        self._changes = changes
        self._wanted = wanted
        self._role = role
        self._measured = measured
        self._trains = trains

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinResponse:
        try:
            node, certificate = await self._admission.join(request.token, request.csr_pem)
        except PermissionDenied as error:
            log.warning("join refused peer=%s: %s", context.peer(), error.message)
            raise
        log.info("joined %s=%s site=%s region=%s", node.kind, node.id, node.site, node.region)
        return pb.JoinResponse(
            certificate_pem=certificate, ca_pem=self._authority.ca_pem, jwks_json=self._authority.jwks_json
        )

    async def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewResponse:
        who = _machine(self._authority.mesh, caller())
        certificate = self._admission.renew(who, request.csr_pem)
        log.info("renewed %s=%s", who.kind, who.id)
        return pb.RenewResponse(
            certificate_pem=certificate,
            ca_pem=self._authority.ca_pem,
            jwks_json=self._authority.jwks_json,
            control_planes=[peer.mesh for peer in self._role.known()],
        )

    async def Session(self, requests: AsyncIterator[pb.NodeReport], context: Any) -> AsyncIterator[pb.WantedState]:
        node_id = caller().name
        self._registry.get(node_id)
        hello = await _hello(requests)
        # Not before: gRPC's client may lose the answer of a server that refuses while it is still sending.
        self._role.check_leads()
        await self._registry.hello(node_id, hello)
        self._registry.session_opened(node_id)
        log.info("session opened node=%s public=%s mesh=%s", node_id, hello.public_address, hello.mesh_address)
        reader = asyncio.create_task(self._read(node_id, shown_key(context), requests))
        try:
            async for state in self._write(node_id, reader):
                yield state
            await reader
        finally:
            reader.cancel()
            self._registry.session_closed(node_id)
            log.info("session closed node=%s", node_id)

    async def _read(self, node_id: str, key: str, requests: AsyncIterator[pb.NodeReport]) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    report = await anext(requests, None)
            except TimeoutError:
                raise DeadlineExceeded(f"no report for {SILENCE_S:.0f} s") from None
            if report is None:
                return
            self._role.check_leads()
            if report.WhichOneof("report") == "status":
                await self._registry.status(node_id, report.status)
                self._measured(node_id, report.status)
                self._trains(node_id, report.status, key)

    async def _write(self, node_id: str, reader: asyncio.Task[None]) -> AsyncIterator[pb.WantedState]:
        """The wanted state now and whenever it changes, until the node stops talking or is removed."""
        sent, seen = None, 0
        while not reader.done() and node_id not in self._registry.removed_ids():
            self._role.check_leads()
            seen, state = self._changes.value, self._wanted(node_id)
            if state != sent:
                sent = pb.WantedState.FromString(state.SerializeToString())
                state.generation = seen
                yield state
            change = asyncio.ensure_future(self._changes.above(seen))
            await asyncio.wait({change, reader}, return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
            # Changes come in swarms, when many nodes join or the control plane starts: each is not worth a look.
            await asyncio.wait({reader}, timeout=TELL_EVERY_S)


async def _hello(requests: AsyncIterator[pb.NodeReport]) -> pb.NodeHello:
    try:
        async with asyncio.timeout(HELLO_WITHIN_S):
            first = await anext(aiter(requests), None)
    except TimeoutError:
        raise DeadlineExceeded(f"no hello within {HELLO_WITHIN_S:.0f} s") from None
    if first is None or first.WhichOneof("report") != "hello":
        raise InvalidInput("a session begins with a hello")
    return first.hello


def _machine(mesh: str, who: Identity) -> MachineId:
    kind: Kind = "node" if who.role == "node" else "gateway"
    return MachineId(mesh, kind, who.name)
