"""A node's certificate, that is renewed while the node serves."""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from tritonclient.grpc import service_pb2_grpc

from nearmesh.ids import MachineId, node_server_name
from nearmesh.tls import Credentials, certificate_request, key_to_pem, new_key
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import MESH, ControlPlane, Node, calling, control_plane, node, question, until


async def test_a_short_lived_certificate_is_renewed_again_and_again(tmp_path: Path) -> None:
    async with control_plane(tmp_path / "plane", certificate_lifetime_s=6.0) as plane, plane.operator() as operator:
        await operator.publish(adding(tmp_path / "1", "adder", "1", 1.0))
        await operator.deploy("adder", "1")
        async with node(plane, tmp_path / "node", "young") as agent:
            await agent.serves("adder", "1")
            visitor = _visitor(plane)
            first = await _shown(agent, plane, visitor)
            async with calling(agent, "adder") as caller:
                # By then the first certificate has ended.
                async def again() -> bool:
                    return agent.log.count("certificate renewed id=young") >= 2

                await until(again, within_s=40)
                renewed = await _shown(agent, plane, visitor)
                assert caller.errors == []
            for before, now in zip(first, renewed, strict=True):
                assert now.serial_number != before.serial_number
                assert now.not_valid_after_utc > before.not_valid_after_utc
            stub = service_pb2_grpc.GRPCInferenceServiceStub(agent.channel(credentials=visitor))
            assert (await stub.ModelInfer(question("adder"))).model_version == "1"
            # Its own calls show the young certificate too: a new session, and a pull.
            await plane.kill()
            await plane.start()
            await agent.live()
            await operator.publish(adding(tmp_path / "2", "adder", "2", 2.0))
            await operator.deploy("adder", "2")
            await agent.serves("adder", "2")
            # Not a flood: about four seconds lie between two of them.
            assert agent.log.count("certificate renewed") <= 12


def _visitor(plane: ControlPlane) -> Credentials:
    """Another node, whose certificate lasts."""
    key, who = new_key(), MachineId(MESH, "node", "visitor")
    signed = plane.authority.sign(certificate_request(key, who), who, timedelta(hours=1))
    return Credentials(key_to_pem(key), signed, plane.authority.ca_pem)


async def _shown(agent: Node, plane: ControlPlane, visitor: Credentials) -> list[x509.Certificate]:
    """What the node shows in a new handshake on its public and on its mesh listener."""
    found = []
    folder = plane.data / "visitor"
    visitor.write(folder)
    for address in (agent.public, agent.mesh):
        context = visitor.ssl_context(folder)
        context.set_alpn_protocols(["h2"])
        host, _, port = address.partition(":")
        _, writer = await asyncio.open_connection(
            host, int(port), ssl=context, server_hostname=node_server_name(MESH, agent.name)
        )
        shown: ssl.SSLObject = writer.get_extra_info("ssl_object")
        der = shown.getpeercert(binary_form=True)
        assert der
        found.append(x509.load_der_x509_certificate(der))
        writer.close()
    return found
