"""P8 with real processes: no stranger joins, whatever token or certificate request it brings."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from nearmesh_controlplane.registry.authority import Authority

from nearmesh.errors import InvalidInput, JoinRefused, MeshError
from nearmesh.membership import join
from nearmesh.tls import new_key
from nearmesh.tokens import TokenIssuer, read_join_token
from nearmesh.v1 import node_pb2, node_pb2_grpc
from tests.integration.mesh_processes import MESH, REGION, ControlPlane, control_plane, until
from tests.integration.refusals import nothing_changes, refused, request_for

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path_factory.mktemp("control-plane")) as found:
        yield found


async def refused_join(plane: ControlPlane, token: str, csr: bytes) -> MeshError:
    stub = node_pb2_grpc.NodeServiceStub(plane.channel())
    return await refused(stub.Join(node_pb2.JoinRequest(token=token, csr_pem=csr)))


# Tokens


async def test_p8_a_join_token_works_once(plane: ControlPlane, tmp_path: Path) -> None:
    token = await plane.join_token("once")
    membership = await join(token, "node", tmp_path / "first")
    assert (membership.id, membership.site, membership.region) == ("once", "site-once", REGION)
    async with nothing_changes(plane):
        with pytest.raises(JoinRefused, match="used already"):
            await join(token, "node", tmp_path / "second")
    assert not (tmp_path / "second").exists()
    await plane.logged("join refused: the token for 'once' was used already")


async def test_p8_of_two_that_join_at_once_with_one_token_one_gets_in(plane: ControlPlane, tmp_path: Path) -> None:
    token = await plane.join_token("twin")
    attempts = [join(token, "node", tmp_path / str(number)) for number in range(8)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert sorted(isinstance(result, JoinRefused) for result in results) == [False] + [True] * 7


async def test_p8_an_expired_join_token_is_refused(plane: ControlPlane) -> None:
    async with plane.operator() as operator:
        answer = await operator.join_token("late", "site-late", REGION, lifetime_s=1.0)
    async with nothing_changes(plane):

        async def over() -> bool:
            return time.time() > answer.expires_at_s

        await until(over)
        error = await refused_join(plane, answer.token, request_for("late"))
    assert (error.status, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "JOIN_REFUSED")
    assert "expired" in error.message
    await plane.logged("join refused: the token has expired")


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    head, body, signature = token.split(".")
    read = [json.loads(base64.urlsafe_b64decode(part + "==")) for part in (head, body)]
    return read[0], read[1], signature


def _packed(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def _by_a_stranger(token: str, plane: ControlPlane) -> str:
    return TokenIssuer(new_key(), MESH).join(read_join_token(token), now_s=time.time(), lifetime_s=600)


def _by_a_stranger_under_our_key_id(token: str, plane: ControlPlane) -> str:
    head, body, _ = _parts(token)
    return jwt.encode(body, new_key(), algorithm="ES256", headers={"kid": head["kid"]})


def _with_another_name(token: str, plane: ControlPlane) -> str:
    head, body, signature = _parts(token)
    return f"{_packed(head)}.{_packed(body | {'sub': 'intruder'})}.{signature}"


def _unsigned(token: str, plane: ControlPlane) -> str:
    head, body, _ = _parts(token)
    return f"{_packed(head | {'alg': 'none'})}.{_packed(body)}."


def _signed_with_the_public_key_as_a_secret(token: str, plane: ControlPlane) -> str:
    head, body, _ = _parts(token)
    secret = json.loads(plane.authority.jwks_json)["keys"][0]["x"]
    return jwt.encode(body, secret, algorithm="HS256", headers={"kid": head["kid"]})


def _of_another_mesh(token: str, plane: ControlPlane) -> str:
    issuer = TokenIssuer(plane.authority.issuer._key, "another-mesh")
    return issuer.join(read_join_token(token), now_s=time.time(), lifetime_s=600)


def _a_bearer_token(token: str, plane: ControlPlane) -> str:
    return plane.token("operator")


FORGERIES = [
    _by_a_stranger,
    _by_a_stranger_under_our_key_id,
    _with_another_name,
    _unsigned,
    _signed_with_the_public_key_as_a_secret,
    _of_another_mesh,
    _a_bearer_token,
    lambda token, plane: "",
    lambda token, plane: "not a token",
]


@pytest.mark.parametrize("forge", FORGERIES)
async def test_p8_a_forged_join_token_is_refused(
    plane: ControlPlane, forge: Callable[[str, ControlPlane], str]
) -> None:
    token = await plane.join_token("forged")
    async with nothing_changes(plane):
        for name in ("forged", "intruder"):
            error = await refused_join(plane, forge(token, plane), request_for(name))
            assert (error.status, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "JOIN_REFUSED")
    await plane.logged(error.message)


# Certificate requests


def _request(uris: list[str], names: list[str], key: Any = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "any")])
    )
    wanted = [x509.UniformResourceIdentifier(uri) for uri in uris] + [x509.DNSName(name) for name in names]
    if wanted:
        builder = builder.add_extension(x509.SubjectAlternativeName(wanted), critical=False)
    return builder.sign(key or new_key(), hashes.SHA256()).public_bytes(Encoding.PEM)


def _with_a_broken_signature(pem: bytes) -> bytes:
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return (
        b"-----BEGIN CERTIFICATE REQUEST-----\n"
        + base64.encodebytes(bytes(der))
        + b"-----END CERTIFICATE REQUEST-----\n"
    )


RIGHT_URI, RIGHT_NAME = f"spiffe://{MESH}/node/asker", f"asker.{MESH}"
REQUESTS = {
    "another node": lambda: request_for("other"),
    "a gateway": lambda: request_for("asker", "gateway"),
    "another mesh": lambda: request_for("asker", mesh="another-mesh"),
    "another DNS name": lambda: _request([RIGHT_URI], ["control-plane." + MESH]),
    "a DNS name too many": lambda: _request([RIGHT_URI], [RIGHT_NAME, "localhost"]),
    "two identities": lambda: _request([RIGHT_URI, f"spiffe://{MESH}/node/other"], [RIGHT_NAME]),
    "no identity": lambda: _request([], []),
    "an odd identity": lambda: _request([f"spiffe://{MESH}/admin/asker"], [RIGHT_NAME]),
    "an RSA key": lambda: _request([RIGHT_URI], [RIGHT_NAME], rsa.generate_private_key(65537, 2048)),
    "an odd curve": lambda: _request([RIGHT_URI], [RIGHT_NAME], ec.generate_private_key(ec.SECP521R1())),
    "a broken signature": lambda: _with_a_broken_signature(request_for("asker")),
    "nothing": lambda: b"",
    "noise": lambda: bytes(range(256)),
    "PEM around noise": lambda: b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
}


@pytest.mark.parametrize("what", REQUESTS)
async def test_p8_a_wrong_certificate_request_is_refused_and_the_token_still_works(
    plane: ControlPlane, what: str
) -> None:
    token = await plane.join_token("asker")
    async with nothing_changes(plane):
        error = await refused_join(plane, token, REQUESTS[what]())
        assert (error.status, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "JOIN_REFUSED")
        await plane.logged(error.message)
    stub = node_pb2_grpc.NodeServiceStub(plane.channel())
    answer = await stub.Join(node_pb2.JoinRequest(token=token, csr_pem=request_for("asker")))
    assert x509.load_pem_x509_certificate(answer.certificate_pem)


async def test_p8_a_gateways_token_lets_no_node_join(plane: ControlPlane, tmp_path: Path) -> None:
    token = await plane.join_token("door", kind="gateway")
    async with nothing_changes(plane):
        with pytest.raises(InvalidInput, match="lets a gateway join, not a node"):
            await join(token, "node", tmp_path / "door")
        error = await refused_join(plane, token, request_for("door"))
        assert error.reason == "JOIN_REFUSED"


async def test_p8_a_nodes_name_is_not_free_for_a_gateway(plane: ControlPlane, tmp_path: Path) -> None:
    await plane.machine(tmp_path / "machine", "taken")
    with pytest.raises(JoinRefused, match="is a node; choose another name"):
        await join(await plane.join_token("taken", kind="gateway"), "gateway", tmp_path / "gateway")


async def test_p8_a_machine_takes_no_control_plane_of_another_authority_for_its_own(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """A token whose CA is another's leads its holder to nobody."""
    ticket = read_join_token(await plane.join_token("misled"))
    other = Authority.open(MESH, tmp_path / "other")
    token = other.issuer.join(dataclasses.replace(ticket, ca_pem=other.ca_pem), now_s=time.time(), lifetime_s=60)
    async with nothing_changes(plane):
        with pytest.raises(MeshError) as caught:
            await join(token, "node", tmp_path / "misled")
        assert caught.value.status is grpc.StatusCode.UNAVAILABLE
