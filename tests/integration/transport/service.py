"""A service over plain bytes on the agent's own gRPC server, and a client of it that speaks HTTP/2 through h2."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
from google.protobuf.wrappers_pb2 import BytesValue
from h2.settings import SettingCodes, Settings

from nearmesh.rpc import EVERYONE, Gatekeeper, caller
from nearmesh.transport import frames
from nearmesh.transport.server import Server
from tests.http2_peer import OPENING, Reader

SERVICE = "/test.Service/"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# In which anything awaited here happens, however busy the machine.
SOON_S = 10.0
# More than any answer that is held back may run ahead of its reader.
TOO_MUCH_BYTES = 64 * 1024 * 1024


class Service:
    """Methods of all four kinds. What a test waits for is an event; what it lets happen, too."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.begun, self.cancelled, self.release, self.too_much = (asyncio.Event() for _ in range(4))
        self.produced_bytes = 0
        self.who: list[str] = []
        self.metadata: tuple[tuple[str, str | bytes], ...] = ()

    async def echo(self, request: bytes, context: Any) -> bytes:
        self.who.append(str(caller()))
        self.metadata = context.invocation_metadata()
        context.set_trailing_metadata((("x-seen", str(len(request))), ("x-seen-bin", b"\0\xff")))
        return request

    async def fail(self, request: bytes, context: Any) -> bytes:
        assert self.error
        raise self.error

    async def wait(self, request: bytes, context: Any) -> bytes:
        """Until it is released, whatever the caller's deadline."""
        self.begun.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request

    async def produce(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """So many parts of so many bytes; fails after them if it is told to."""
        count, size = (int(part) for part in request.split())
        self.begun.set()
        try:
            for _ in range(count):
                self.produced_bytes += size
                if self.produced_bytes > TOO_MUCH_BYTES:
                    self.too_much.set()
                yield bytes(size)
            if self.error:
                raise self.error
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        sizes = [len(request) async for request in requests]
        return b"%d %d" % (len(sizes), sum(sizes))

    async def hold(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        """Takes none until it is released; then how many there were."""
        self.begun.set()
        await self.release.wait()
        return b"%d" % len([request async for request in requests])

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.begun.set()
        try:
            async for request in requests:
                if self.error:
                    raise self.error
                yield b"%d" % len(request)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def hear(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        """Takes the first one and answers, whether there are more or not."""
        async for request in requests:
            return request
        return b""

    async def parsed(self, request: BytesValue, context: Any) -> BytesValue:
        return request


async def happened(event: asyncio.Event) -> None:
    """Waits for it."""
    async with asyncio.timeout(SOON_S):
        await event.wait()


def handlers(service: Service) -> dict[str, Any]:
    """As generated code gives them to a server."""
    plain = {"request_deserializer": bytes, "response_serializer": bytes}
    one = grpc.unary_unary_rpc_method_handler
    found = {name: one(getattr(service, name.lower()), **plain) for name in ("Echo", "Fail", "Wait")}
    found["Produce"] = grpc.unary_stream_rpc_method_handler(service.produce, **plain)
    found["Collect"] = grpc.stream_unary_rpc_method_handler(service.collect, **plain)
    found["Hold"] = grpc.stream_unary_rpc_method_handler(service.hold, **plain)
    found["Hear"] = grpc.stream_unary_rpc_method_handler(service.hear, **plain)
    found["Chat"] = grpc.stream_stream_rpc_method_handler(service.chat, **plain)
    found["Parsed"] = one(
        service.parsed,
        request_deserializer=BytesValue.FromString,
        response_serializer=BytesValue.SerializeToString,
    )
    return found


@dataclass(frozen=True, slots=True)
class Running:
    service: Service
    server: Server
    address: str

    def channel(self) -> grpc.aio.Channel:
        """One whose messages may have any size."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.insecure_channel(self.address, options=options)


def open_to_all(service: str = SERVICE) -> Gatekeeper:
    return Gatekeeper(mesh="mesh", verifier=None, policy={service: EVERYONE}, open_door=True)


@asynccontextmanager
async def serving(
    listen: Callable[[Server], str] = lambda server: server.listen_plain("127.0.0.1:0"),
    *,
    gatekeeper: Gatekeeper | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    metadata: tuple[tuple[str, str], ...] = (),
) -> AsyncIterator[Running]:
    """Ends within bounds, whatever is under way."""
    service = Service()
    server = Server(gatekeeper or open_to_all(), max_message_bytes, metadata=metadata)
    server.add_registered_method_handlers(SERVICE.strip("/"), handlers(service))
    address = listen(server)
    await server.start()
    try:
        yield Running(service, server, address)
    finally:
        async with asyncio.timeout(SOON_S):
            await server.stop(None)


def opening(method: str, *pairs: tuple[str, str]) -> list[tuple[str, str]]:
    """Headers of a call."""
    replaced = [(name, SERVICE + method if name == ":path" else value) for name, value in OPENING]
    return [*replaced, *pairs]


class RawClient(Reader):
    """h2 on a socket; nothing is read or written but in `until`, and no window grows by itself."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: dict[int, int] | None = None
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        asked = {SettingCodes(key): value for key, value in (settings or {}).items()}
        self.h2.local_settings = Settings(client=True, initial_values=asked)
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []

    async def until(self, there: Callable[[], Any]) -> None:
        """Sends what is to be sent, and reads until something is there."""
        async with asyncio.timeout(SOON_S):
            while True:
                self.writer.write(self.h2.data_to_send())
                await self.writer.drain()
                if there():
                    return
                await self.read()

    async def read(self) -> None:
        came = await self.reader.read(2**16)
        assert came, "the connection is closed"
        self.events += self.h2.receive_data(came)

    async def pinged(self) -> None:
        """Everything sent so far has been taken in, and what was said before has been read."""
        before = len(self.of(h2.events.PingAckReceived))
        self.h2.ping(b"are you?")
        await self.until(lambda: len(self.of(h2.events.PingAckReceived)) > before)

    def call(self, method: str, contents: bytes | None = None, *pairs: tuple[str, str], end: bool = True) -> int:
        """Opens a stream, with a message if there is one; for `until` to send."""
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, opening(method, *pairs), end_stream=end and contents is None)
        if contents is not None:
            self.h2.send_data(number, b"\0" + len(contents).to_bytes(4, "big") + contents, end_stream=end)
        return number


@asynccontextmanager
async def connected(
    address: str, *, tls: ssl.SSLContext | None = None, name: str = "localhost"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which nothing has been said."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls, server_hostname=name if tls else None)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def raw_client(
    address: str, *, tls: ssl.SSLContext | None = None, settings: dict[int, int] | None = None
) -> AsyncIterator[RawClient]:
    """Introduced to the server when this returns."""
    async with connected(address, tls=tls) as (reader, writer):
        client = RawClient(reader, writer, settings)
        await client.until(lambda: client.of(h2.events.SettingsAcknowledged))
        yield client


def window(size: int) -> dict[int, int]:
    """Settings of a client that gives each stream so much room."""
    return {frames.INITIAL_WINDOW_SIZE: size}
