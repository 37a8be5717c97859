"""A real Envoy, configured by our discovery service alone, between stock clients and three nodes.

The nodes are there for all tests; each test has an Envoy of its own.
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc.aio as stock
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh.gateway.bootstrap import write_secrets
from nearmesh.tokens import SUBJECT_HEADER
from tests.integration.xds_fixtures import Gateway, SmallMesh, access_token, gateway, machine, small_mesh
from tests.signals import send

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = 6_500_000
Stub = service_pb2_grpc.GRPCInferenceServiceStub


def request(model: str = "digits", size: int = 0, **parameters: int) -> Any:
    made = service_pb2.ModelInferRequest(model_name=model)
    made.raw_input_contents.append(bytes(size))
    for key, value in parameters.items():
        made.parameters[key].int64_param = value
    return made


async def infer(stub: Stub, *args: Any, objective: str = "", timeout_s: float = 15, **parameters: int) -> str:
    """The node that answered."""
    metadata = [("nearmesh-objective", objective)] if objective else []
    answer = await stub.ModelInfer(request(*args, **parameters), timeout=timeout_s, metadata=metadata)
    return str(answer.parameters["node"].string_param)


@asynccontextmanager
async def plain_stub(running: Gateway) -> AsyncIterator[Stub]:
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(running.address, options=options) as channel:
        yield Stub(channel)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SmallMesh]:
    async with small_mesh(tmp_path_factory.mktemp("mesh"), "mesh") as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def small(shared: SmallMesh) -> AsyncIterator[SmallMesh]:
    """Whole, whatever the test before this one did to it; nothing that Envoy was told may be refused."""
    await shared.whole()
    refused = shared.service.refused
    yield shared
    assert shared.service.refused == refused


@asynccontextmanager
async def setting(small: SmallMesh) -> AsyncIterator[tuple[Gateway, Stub]]:
    async with gateway(small) as running, plain_stub(running) as stub:
        yield running, stub


async def until(condition: Any, within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110  what is waited for happens in other processes
            await asyncio.sleep(0.01)


class Load:
    """Steady calls in the background, and what became of them."""

    def __init__(self, stub: Stub, per_s: float = 40) -> None:
        self._stub = stub
        self._pause_s = 1 / per_s
        self.nodes: list[tuple[float, str]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Load:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        # Any error of any call fails the test here.
        await asyncio.gather(*self._calls)

    async def _run(self) -> None:
        while True:
            self._calls.add(asyncio.create_task(self._one()))
            await asyncio.sleep(self._pause_s)

    async def _one(self) -> None:
        node = await infer(self._stub)
        self.nodes.append((time.monotonic(), node))

    async def all_on(self, node: str, last: int = 10) -> None:
        """Waits until the latest answers came from that node alone."""

        async def moved() -> bool:
            return [name for _, name in self.nodes[-last:]] == [node] * last

        await until(moved)


async def test_a_stock_client_without_any_header_reaches_the_first_node(small: SmallMesh) -> None:
    async with gateway(small) as running:
        client = stock.InferenceServerClient(running.address)
        tensor = stock.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
        answer = await client.infer("digits", [tensor])
        assert answer.get_response().parameters["node"].string_param == "a"
        assert await client.is_model_ready("digits")
        assert await client.is_server_live()
        assert (await client.get_server_metadata()).name == "c", "calls that name no model go to the nearest"
        await client.close()


async def test_what_the_gateway_answers_by_itself(small: SmallMesh) -> None:
    async with setting(small) as (_, stub):
        cases = [
            (stub.ModelInfer(request("nope")), "NOT_FOUND", "'nope'"),
            (stub.ModelInfer(request("")), "INVALID_ARGUMENT", "no model"),
            (stub.ModelReady(service_pb2.ModelReadyRequest(name="nope")), "NOT_FOUND", "'nope'"),
            (
                stub.ModelInfer(request(), metadata=[("nearmesh-objective", "fastest")]),
                "INVALID_ARGUMENT",
                "'fastest' is not one of cheapest, cheapest-in-time, nearest",
            ),
            (
                stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name="digits")),
                "PERMISSION_DENIED",
                "model deploy",
            ),
            (
                stub.RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(model_name="digits")),
                "PERMISSION_DENIED",
                "model deploy",
            ),
            (stub.LogSettings(service_pb2.LogSettingsRequest()), "UNIMPLEMENTED", "LogSettings"),
        ]
        for call, status, words in cases:
            start = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
                await call
            assert caught.value.code().name == status
            assert time.monotonic() - start < 1


async def test_a_mesh_without_models_has_its_nearest_node_and_knows_what_it_does_not_serve(small: SmallMesh) -> None:
    small.order("mesh", "a", ())
    # Envoy opens its listener only with a route table that it accepted.
    async with setting(small) as (_, stub):
        assert (await stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=15)).name == "a"
        for objective, status in (("", "NOT_FOUND"), ("nearest", "NOT_FOUND"), ("fastest", "INVALID_ARGUMENT")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await infer(stub, objective=objective)
            assert caught.value.code().name == status
        small.order("mesh", "a")

        async def served() -> bool:
            try:
                return await infer(stub) == "a"
            except grpc.aio.AioRpcError:
                return False

        await until(served)


async def test_the_headers_route_too(small: SmallMesh) -> None:
    async with setting(small) as (_, stub):
        small.order("mesh", "abc", nearest="c", cheapest="b")

        async def known() -> bool:
            return await infer(stub, objective="nearest") == "c"

        await until(known)
        assert await infer(stub, objective="cheapest") == "b"
        assert await infer(stub) == "a"
        answer = await stub.ModelInfer(request(), metadata=[("nearmesh-model", "other")])
        assert answer.model_name == "digits", "the header routes, the body is the node's to judge"


async def test_tokens_on_tls_and_in_plain_text(small: SmallMesh, tmp_path: Path) -> None:
    async with setting(small) as (running, plain):
        stranger = access_token(type(small.authority).open("test-mesh", tmp_path / "elsewhere"))
        expired = access_token(small.authority, now_s=time.time() - 7200)
        credentials = grpc.ssl_channel_credentials(small.authority.ca_pem)
        options = [("grpc.ssl_target_name_override", running.server_name)]
        async with grpc.aio.secure_channel(running.address, credentials, options=options) as channel:
            secure = Stub(channel)
            for token in (None, stranger, expired, "nonsense"):
                for stub in (secure, plain) if token else (secure,):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await stub.ModelInfer(request(), metadata=bearer(token))
                    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            answer = await secure.ModelInfer(request(), metadata=bearer(small.token))
            assert answer.parameters["node"].string_param == "a"


async def test_a_node_is_told_whose_token_it_was_and_by_the_gateway_alone(small: SmallMesh) -> None:
    async with setting(small) as (_, plain):
        claimed = [(SUBJECT_HEADER, "somebody-else")]
        shown = await plain.ModelInfer(request(), metadata=[*bearer(small.token), *claimed])
        assert shown.parameters["subject"].string_param == "app"
        nobody = await plain.ModelInfer(request(), metadata=claimed)
        assert "subject" not in nobody.parameters


def bearer(token: str | None) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")] if token else []


async def test_plain_text_is_refused_unless_it_was_asked_for(small: SmallMesh) -> None:
    async with gateway(small, plaintext=False) as running:
        async with plain_stub(running) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await infer(stub)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_requests_up_to_32_mib_pass_and_a_killed_node_costs_none_of_them(small: SmallMesh) -> None:
    async with setting(small) as (_, stub):
        answer = await stub.ModelInfer(request(size=32 * 2**20))
        assert answer.parameters["bytes"].int64_param == 32 * 2**20
        calls = [asyncio.create_task(infer(stub, "digits", LARGE, sleep_ms=700)) for _ in range(4)]
        await asyncio.sleep(0.4)
        await small.nodes["a"].kill()
        assert set(await asyncio.gather(*calls)) == {"b"}
        assert await infer(stub, "digits", LARGE) == "b"


async def test_a_changed_order_moves_traffic_and_a_killed_node_too_without_an_error(small: SmallMesh) -> None:
    async with setting(small) as (_, stub), Load(stub) as load:
        await load.all_on("a")
        start = time.monotonic()
        small.order("mesh", "cba")
        await load.all_on("c")
        await small.nodes["c"].kill()
        await load.all_on("b")
        assert time.monotonic() - start < 5


async def test_a_frozen_node_delays_calls_and_fails_none(small: SmallMesh) -> None:
    async with setting(small) as (_, stub), Load(stub, per_s=10) as load:
        await load.all_on("a")
        small.nodes["a"].process.send_signal(signal.SIGSTOP)
        await load.all_on("b")
    # With what waits in it.
    await small.nodes["a"].kill()


async def test_one_clients_hopeless_deadlines_or_bad_requests_eject_no_node(small: SmallMesh) -> None:
    async with setting(small) as (_, stub):
        hopeless = [infer(stub, "digits", sleep_ms=400, timeout_s=0.05) for _ in range(20)]
        bad = [infer(stub, "digits", status=grpc.StatusCode.INVALID_ARGUMENT.value[0]) for _ in range(20)]
        outcomes = await asyncio.gather(*hopeless, *bad, return_exceptions=True)
        assert all(isinstance(one, grpc.aio.AioRpcError) for one in outcomes)
        assert await infer(stub) == "a"


async def test_a_stream_stays_on_its_node_and_ends_with_it(small: SmallMesh) -> None:
    async with setting(small) as (_, stub):
        stream = stub.ModelStreamInfer()
        for moved in ("abc", "bca"):
            small.order("mesh", moved)
            await stream.write(request())
            answer = await stream.read()
            assert answer.infer_response.parameters["node"].string_param == "a"
        await small.nodes["a"].kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        # Envoy can say no more once an answer has begun; the SDK turns this into SequenceLost.
        assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_model_may_come_and_go_while_another_is_in_use(small: SmallMesh) -> None:
    async with setting(small) as (_, stub), Load(stub) as load:
        await load.all_on("a")
        small.order("mesh", "abc", ("digits", "fresh"))

        async def served() -> bool:
            try:
                return await infer(stub, "fresh") == "a"
            except grpc.aio.AioRpcError as error:
                assert error.code().name in ("NOT_FOUND", "UNAVAILABLE")
                return False

        await until(served)
        small.order("mesh", "abc", ("digits",))

        async def gone() -> bool:
            return not await served()

        await until(gone)


async def test_a_renewed_certificate_is_taken_up_without_a_restart(small: SmallMesh) -> None:
    async with setting(small) as (running, stub):
        before, folder = await shown_certificate(running), small.folder / running.name
        machine(small.authority, "gateway", running.name, folder / "credentials")
        write_secrets(folder, folder / "credentials")

        async def renewed() -> bool:
            return await shown_certificate(running) != before

        await until(renewed)
        assert await infer(stub) == "a"


async def shown_certificate(running: Gateway) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = running.address.split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


async def test_envoy_comes_back_after_a_crash_and_leaves_with_its_gateway(small: SmallMesh) -> None:
    async with setting(small) as (running, stub):
        first = running.envoy.pid
        assert first
        send(first, signal.SIGKILL)

        async def answers() -> bool:
            try:
                return await infer(stub) == "a"
            except grpc.aio.AioRpcError:
                return False

        await until(answers, 30)
        assert running.envoy.restarts == 1
        assert running.envoy.pid != first
    assert running.envoy.pid is None


async def test_a_removed_gateway_hears_no_more(small: SmallMesh) -> None:
    async with setting(small) as (_, stub):
        assert await infer(stub) == "a"

        async def alone() -> bool:
            return small.service.streams == 1

        # The Envoy of the test before this one has left, as the service may have to hear first.
        await until(alone)
        small.removed.add("gw")
        small.order("mesh", "bca")

        async def closed() -> bool:
            return small.service.streams == 0

        await until(closed)
        assert await infer(stub) == "a", "it goes on with what it knows; nodes refuse its certificate"


async def test_the_access_log_tells_what_calls_came_to(small: SmallMesh) -> None:
    """By model, objective and node; what callers get wrong counts for nobody."""
    async with setting(small) as (running, stub):
        for _ in range(5):
            await infer(stub)
        await infer(stub, sleep_ms=500)
        small.order("mesh", "abc", nearest="c")

        async def moved() -> bool:
            return await infer(stub, "other", objective="nearest") == "c"

        await until(moved)
        for status in (3, 13):
            with pytest.raises(grpc.aio.AioRpcError):
                await infer(stub, status=status)
        with pytest.raises(grpc.aio.AioRpcError):
            await infer(stub, "nobody's")
        found: dict[tuple[str, str, str], list[float]] = {}

        async def complete() -> bool:
            for calls in running.calls.take():
                sums = found.setdefault((calls.model, calls.objective, calls.node), [0, 0, 0, 0.0])
                for at, value in enumerate((calls.answered, calls.failed, calls.late, calls.total_ms)):
                    sums[at] += value
            await asyncio.sleep(0.05)
            return bool(found.get(("digits", "", "a"), [0, 0])[1])

        await until(complete)
        answered, failed, late, total_ms = found["digits", "", "a"]
        assert (answered, failed, late) == (6, 1, 1)
        assert 500 < total_ms < 5000
        assert found["other", "nearest", "c"][0] == 1
        assert {model for model, _, _ in found} == {"digits", "other"}
