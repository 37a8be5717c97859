"""TLS of the agent's own gRPC server: tokens on one listener, certificates on the other, and its own is renewed."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from nearmesh_controlplane.registry.authority import Authority

from nearmesh.ids import MachineId
from nearmesh.rpc import Gatekeeper
from nearmesh.tls import Credentials, certificate_request, key_to_pem, new_key
from nearmesh.transport import frames
from nearmesh.transport.server import Server
from tests.http2_peer import HELLO
from tests.integration.transport.service import SERVICE, SOON_S, Running, connected, raw_client, serving

MESH = "mesh"
REFUSED = (grpc.StatusCode.UNAVAILABLE,)


class Shown:
    """The certificate that the server shows now."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.now = authority.server_credentials(["localhost"])

    def renew(self) -> None:
        self.now = self.authority.server_credentials(["localhost"])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open(MESH, tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another mesh of the same name."""
    return Authority.open(MESH, tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def shown(authority: Authority) -> Shown:
    return Shown(authority)


def machine(authority: Authority, name: str, *, trusts: Authority | None = None) -> Credentials:
    who, key = MachineId(MESH, "node", name), new_key()
    signed = authority.sign(certificate_request(key, who), who, timedelta(hours=1))
    return Credentials(key_to_pem(key), signed, (trusts or authority).ca_pem)


def token_of(authority: Authority, role: str = "client") -> str:
    return authority.issuer.access("me", role, now_s=time.time(), lifetime_s=300)


def gatekeeper(authority: Authority) -> Gatekeeper:
    """Clients and nodes may call, and nobody else."""
    return Gatekeeper(mesh=MESH, verifier=authority.verifier(), policy={SERVICE: frozenset({"client", "node"})})


@pytest.fixture
async def public(authority: Authority, shown: Shown) -> AsyncIterator[Running]:
    def listen(server: Server) -> str:
        return server.listen("127.0.0.1:0", lambda: shown.now, mesh=False)

    async with serving(listen, gatekeeper=gatekeeper(authority)) as running:
        yield running


@pytest.fixture
async def mesh(authority: Authority, shown: Shown) -> AsyncIterator[Running]:
    def listen(server: Server) -> str:
        return server.listen("127.0.0.1:0", lambda: shown.now, mesh=True)

    async with serving(listen, gatekeeper=gatekeeper(authority)) as running:
        yield running


def channel(running: Running, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(running.address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


def by_ca(authority: Authority) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(authority.ca_pem)


async def status(channel: grpc.aio.Channel, contents: bytes = b"a", token: str = "") -> grpc.StatusCode:
    """Of one call on a channel of its own."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    async with channel:
        try:
            assert await channel.unary_unary(SERVICE + "Echo")(contents, metadata=metadata, timeout=SOON_S) == contents
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


# Who calls.


async def test_a_token_says_who_calls_the_public_listener(public: Running, authority: Authority) -> None:
    token = token_of(authority)
    assert await status(channel(public, by_ca(authority)), token=token) is grpc.StatusCode.OK
    assert public.service.who == ["client/me"]


async def test_the_public_listener_wants_a_token_that_holds(
    public: Running, authority: Authority, stranger: Authority
) -> None:
    ends = (authority, "data", grpc.StatusCode.PERMISSION_DENIED), (stranger, "client", grpc.StatusCode.UNAUTHENTICATED)
    for issuing, role, expected in ends:
        token = token_of(issuing, role)
        assert await status(channel(public, by_ca(authority)), token=token) is expected
    assert await status(channel(public, by_ca(authority))) is grpc.StatusCode.UNAUTHENTICATED
    # Whom nobody asks for a certificate, nobody believes one.
    by_machine = machine(authority, "n1").channel_credentials()
    assert await status(channel(public, by_machine)) is grpc.StatusCode.UNAUTHENTICATED
    assert public.service.who == []


async def test_large_messages_go_through_tls(public: Running, authority: Authority) -> None:
    token = token_of(authority)
    assert await status(channel(public, by_ca(authority)), bytes(4_000_000), token) is grpc.StatusCode.OK


async def test_a_certificate_says_who_calls_the_mesh_listener(mesh: Running, authority: Authority) -> None:
    for name in ("n1", "n2"):
        assert await status(channel(mesh, machine(authority, name).channel_credentials())) is grpc.StatusCode.OK
    # It counts for more than a token.
    token = token_of(authority)
    by_machine = machine(authority, "n3").channel_credentials()
    assert await status(channel(mesh, by_machine), token=token) is grpc.StatusCode.OK
    assert mesh.service.who == ["node/n1", "node/n2", "node/n3"]


@pytest.mark.parametrize("what", ["none", "of a stranger", "that signed itself"])
async def test_the_mesh_listener_wants_a_certificate_of_the_mesh(
    mesh: Running, authority: Authority, stranger: Authority, what: str
) -> None:
    if what == "none":
        found = by_ca(authority)
    elif what == "of a stranger":
        found = machine(stranger, "n1", trusts=authority).channel_credentials()
    else:
        found = grpc.ssl_channel_credentials(authority.ca_pem, key_to_pem(stranger.key), stranger.ca_pem)
    token = token_of(authority)
    assert await status(channel(mesh, found), token=token) in REFUSED
    assert mesh.service.who == []
    assert await status(channel(mesh, machine(authority, "n1").channel_credentials())) is grpc.StatusCode.OK


@pytest.mark.parametrize("listener", ["public", "mesh"])
async def test_plain_text_gets_no_answer(listener: str, public: Running, mesh: Running, authority: Authority) -> None:
    running = public if listener == "public" else mesh
    assert await status(running.channel()) in REFUSED
    async with connected(running.address) as (reader, writer), asyncio.timeout(SOON_S):
        writer.write(HELLO)
        assert frames.frame(frames.SETTINGS, frames.ACK, 0) not in await reader.read(-1)


# What the server shows.


def context(authority: Authority, *protocols: str) -> ssl.SSLContext:
    found = ssl.create_default_context(cadata=authority.ca_pem.decode())
    found.set_alpn_protocols(list(protocols))
    return found


async def handshake(
    running: Running, tls: ssl.SSLContext, name: str = "localhost"
) -> tuple[bytes, str | None, str | None]:
    """The certificate shown, what both sides speak, and the version of TLS."""
    async with connected(running.address, tls=tls, name=name) as (_, writer):
        found = writer.get_extra_info("ssl_object")
    return found.getpeercert(binary_form=True), found.selected_alpn_protocol(), found.version()


def der(credentials: Credentials) -> bytes:
    return ssl.PEM_cert_to_DER_cert(credentials.certificate_pem.decode())


async def test_both_sides_agree_on_http2(public: Running, authority: Authority, shown: Shown) -> None:
    for protocols in (["h2"], ["http/1.1", "h2"]):
        certificate, spoken, version = await handshake(public, context(authority, *protocols))
        assert (certificate, spoken, version) == (der(shown.now), "h2", "TLSv1.3")
    shown.renew()
    assert (await handshake(public, context(authority, "h2")))[1] == "h2"


@pytest.mark.parametrize("version, spoken", [("TLSv1_2", True), ("TLSv1_1", False)])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_old_versions_of_tls_are_refused(
    public: Running, authority: Authority, version: str, spoken: bool
) -> None:
    tls = context(authority, "h2")
    tls.minimum_version = tls.maximum_version = ssl.TLSVersion[version]
    if spoken:
        assert (await handshake(public, tls))[2] == "TLSv1.2"
    else:
        with pytest.raises(ssl.SSLError):
            await handshake(public, tls)


@pytest.mark.parametrize("named", [True, False])
async def test_a_renewed_certificate_is_shown_from_the_next_handshake_on(
    public: Running, authority: Authority, shown: Shown, named: bool
) -> None:
    """Whether the client names a server or not; connections that are open go on."""
    tls = context(authority, "h2")
    token = token_of(authority)
    async with raw_client(public.address, tls=tls) as client:
        tls.check_hostname, seen = named, []
        for _ in range(3):
            seen.append(((await handshake(public, tls, "localhost" if named else ""))[0], der(shown.now)))
            number = client.call("Echo", b"a", ("authorization", f"Bearer {token}"))
            await client.until(lambda number=number: client.trailers(number))
            assert (client.trailers(number) or {})["grpc-status"] == "0"
            shown.renew()
    assert len({certificate for certificate, _ in seen}) == 3
    assert all(certificate == expected for certificate, expected in seen)


async def test_a_renewed_certificate_demands_as_much_as_the_one_before(
    mesh: Running, authority: Authority, stranger: Authority, shown: Shown
) -> None:
    shown.renew()
    assert await status(channel(mesh, by_ca(authority))) in REFUSED
    foreign = machine(stranger, "n1", trusts=authority).channel_credentials()
    assert await status(channel(mesh, foreign)) in REFUSED
    assert await status(channel(mesh, machine(authority, "n1").channel_credentials())) is grpc.StatusCode.OK
    assert mesh.service.who == ["node/n1"]


def left_in(folder: Path) -> list[Path]:
    return [*folder.iterdir()]


async def test_no_key_is_left_on_the_disk(
    authority: Authority, shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with serving(lambda server: server.listen("127.0.0.1:0", lambda: shown.now, mesh=True)) as running:
        shown.renew()
        assert await status(channel(running, machine(authority, "n1").channel_credentials())) is grpc.StatusCode.OK
        assert left_in(tmp_path) == []


async def test_who_is_amid_a_handshake_when_the_server_stops_gets_no_connection(
    public: Running, authority: Authority
) -> None:
    came, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context(authority, "h2").wrap_bio(came, sent, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    async with connected(public.address) as (reader, writer), asyncio.timeout(SOON_S):
        writer.write(sent.read())
        # The server has accepted it, and waits for the client's last word.
        came.write(await reader.readexactly(1) + await reader.read(2**16))
        tls.do_handshake()
        await public.server.stop(0)
        tls.write(HELLO)
        writer.write(sent.read())
        try:
            rest = await reader.read(-1)
        except ConnectionError:
            rest = b""
    came.write(rest)
    told = b""
    try:
        while part := tls.read(2**16):
            told += part
    except ssl.SSLError:
        pass
    assert frames.frame(frames.SETTINGS, frames.ACK, 0) not in told, "it answers as if nothing had happened"
