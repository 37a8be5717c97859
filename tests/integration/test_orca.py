"""Load reports in trailers: a node sends them, and gRPC's own weighted round robin understands them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from nearmesh_agent.serving.orca import TRAILER, Load, encode
from tritonclient.grpc import service_pb2_grpc
from xds.data.orca.v3.orca_load_report_pb2 import OrcaLoadReport

from tests.integration.oip_client import message, two_models

# The reports of the first answers count at once, and weights follow them as fast as gRPC allows.
WEIGHTED = json.dumps(
    {"loadBalancingConfig": [{"weighted_round_robin": {"blackoutPeriod": "0s", "weightUpdatePeriod": "0.1s"}}]}
)
METHOD = "/test.Service/Name"


class Wire:
    """Between a client and a server: keeps what the server sends, since gRPC hides these trailers from applications."""

    def __init__(self, target):
        self._target = target.split(":")
        self.sent = bytearray()

    @asynccontextmanager
    async def opened(self):
        async with asyncio.TaskGroup() as relays:

            async def relay(reader, writer):
                inside_reader, inside_writer = await asyncio.open_connection(*self._target)
                relays.create_task(copied(reader, inside_writer, bytearray()))
                relays.create_task(copied(inside_reader, writer, self.sent))

            async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
                yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def reports(self):
        """Every load report that the server sent: in HPACK, after the name, the length of what is in base64."""
        parts = bytes(self.sent).split(TRAILER.encode())[1:]
        texts = [part[1 : 1 + part[0]] for part in parts]
        return [OrcaLoadReport.FromString(base64.b64decode(text + b"=" * (-len(text) % 4))) for text in texts]


async def copied(reader, writer, kept):
    while some := await reader.read(65536):
        kept += some
        writer.write(some)
    writer.close()


async def test_an_answer_carries_the_nodes_load(tmp_path):
    async with two_models(tmp_path) as running:
        wire = Wire(running.address)
        async with wire.opened() as address, grpc.aio.insecure_channel(address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            await stub.ModelInfer(message())
            (report,) = wire.reports()
    assert report.rps_fractional > 0 and report.application_utilization > 0
    assert report.eps == 0 and dict(report.named_metrics) == {"queue": 0}


async def test_a_refusal_carries_none(tmp_path):
    async with two_models(tmp_path) as running:
        wire = Wire(running.address)
        running.servicer.draining = True
        async with wire.opened() as address, grpc.aio.insecure_channel(address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="leaving"):
                await stub.ModelInfer(message())
            assert b"DRAINING" in wire.sent
            assert wire.reports() == []


@asynccontextmanager
async def reporting(name, load):
    """A server that answers with its name, and says that it has this load; its address."""

    async def answer(request, context):
        context.set_trailing_metadata(((TRAILER, encode(load)),))
        return name

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "test.Service", {"Name": grpc.unary_unary_rpc_method_handler(answer)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_grpc_weighs_endpoints_by_what_the_reports_say():
    """Both answer as many requests; one is nearly full with them, the other nearly empty."""
    loads = {b"full": Load(utilization=0.9, requests_per_s=90), b"empty": Load(utilization=0.1, requests_per_s=90)}
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(reporting(*one)) for one in loads.items()]
        options = [("grpc.service_config", WEIGHTED)]
        channel = grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", options=options)
        ask = (await stack.enter_async_context(channel)).unary_unary(METHOD)
        async with asyncio.timeout(20):
            while True:
                answers = Counter([await ask(b"", wait_for_ready=True) for _ in range(50)])
                # 45 of 50 by the weights; taking turns would give 25.
                if answers[b"empty"] >= 40:
                    break
        assert answers[b"full"] > 0
