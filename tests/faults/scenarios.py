"""What is done to a running mesh while clients call it; used once by the test suite and many times by the soak.

Each scenario checks what it promises, leaves the mesh as it found it, and returns its figures.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nearmesh import tensors
from nearmesh.devmesh.children import script
from nearmesh.devmesh.load import unary_sample
from nearmesh.devmesh.mesh import MESH_FILE, LocalMesh
from nearmesh.devmesh.plan import local, node_of
from nearmesh.errors import Unreachable
from nearmesh.ids import node_server_name
from nearmesh.process import leashed
from tests.faults.loads import (
    WAYS,
    Conversation,
    check_met,
    check_moved,
    check_no_error,
    loads,
    moved_after_s,
    summary,
)

# Steady traffic before a fault, so that it meets calls that are under way.
BEFORE_S = 1.0
# Traffic has moved within this.
MOVED_WITHIN_S = 2.0
# A node that was killed is started again this long after.
DOWN_S = 4.0
# A restarted node imports its libraries, proves its models and is measured.
BACK_WITHIN_S = 30.0
# Traffic around a node that is killed and started again.
LOAD_S = BEFORE_S + DOWN_S + 3.0
LOOK_AGAIN_S = 0.05
# A node whose predicted time is below this share of the deadline does not become late by a measurement's noise.
CERTAIN_SHARE = 0.8
# A node's measurements speak for half a minute.
SETTLED_WITHIN_S = 90.0

# Three ways at once would ask more of two cores than the models' own time allows.
HEAVY = ("text-detector", "text-recognizer")
# Calls a second of each way, which one node can answer while two others and the clients share its cores: what it cannot
# take would go elsewhere, fault or no fault.
RATES = {"file-type": 10.0, "voice-activity": 10.0, "text-detector": 4.0, "text-recognizer": 4.0}

Figures = dict[str, Any]


def groups(model: str) -> list[tuple[str, ...]]:
    """The ways in that are loaded side by side for this model."""
    return [(way,) for way in WAYS] if model in HEAVY else [WAYS]


async def price_moves_traffic(mesh: LocalMesh, region: str, model: str, ways: Sequence[str] = WAYS) -> Figures:
    """Makes another node, within the deadline, the cheapest while every way in is under load."""
    async with mesh.admin() as admin:
        await choice_and_other(mesh, model, region)
        prices = {node.id: node.usd_per_hour for node in await admin.nodes()}
        try:
            async with loads(mesh, model, region=region, ways=ways, rate=RATES[model], seconds=BEFORE_S + 5.0) as found:
                await asyncio.sleep(BEFORE_S)
                before, other = await choice_and_other(mesh, model, region)
                asked_s = time.time()
                await admin.set_price(other, prices[before] / 2)
            end_s = time.time()
            check_met(found.results, node=before, until_s=asked_s)
            check_no_error(found.results)
            check_moved(found.results, away_from=before, after_s=asked_s, until_s=end_s, within_s=MOVED_WITHIN_S)
        finally:
            for node, usd_per_hour in prices.items():
                await admin.set_price(node, usd_per_hour)
    moved = moved_after_s(found.results, away_from=before, after_s=asked_s, until_s=end_s)
    return {"moved_within_s": round(moved, 3), "loads": [summary(result) for result in found.results]}


async def killed_node(mesh: LocalMesh, region: str, model: str, ways: Sequence[str] = WAYS) -> Figures:
    """kill -9 of the node that answers, under load; then it is started again and comes back by itself."""
    async with (
        preferred(mesh, model, region) as before,
        loads(mesh, model, region=region, ways=ways, rate=RATES[model], seconds=LOAD_S) as found,
    ):
        await asyncio.sleep(BEFORE_S)
        child = mesh.find(before)
        killed_s = time.time()
        await child.kill()
        await asyncio.sleep(DOWN_S)
        started_s = time.time()
        await child.start()
    check_met(found.results, node=before, until_s=killed_s)
    check_no_error(found.results)
    check_moved(found.results, away_from=before, after_s=killed_s, until_s=started_s, within_s=MOVED_WITHIN_S)
    await until(lambda: is_ready(mesh, model, region, before), SETTLED_WITHIN_S)
    back_s = time.time() - started_s
    mesh.write_state()
    moved = moved_after_s(found.results, away_from=before, after_s=killed_s, until_s=started_s)
    return {
        "moved_within_s": round(moved, 3),
        "back_within_s": round(back_s, 1),
        "loads": [summary(result) for result in found.results],
    }


async def killed_control_plane(mesh: LocalMesh, region: str, seconds: float) -> Figures:
    """kill -9 of the control plane under load; a node restarts meanwhile; then the control plane comes back."""
    before = await _known(mesh)
    await choice_and_other(mesh, "file-type", region)
    restarted = node_of("asia-northeast1")
    async with loads(mesh, "file-type", region=region, seconds=BEFORE_S + seconds + 3.0) as found:
        await asyncio.sleep(BEFORE_S)
        killed_s = time.time()
        await mesh.control_plane.kill()
        try:
            await mesh.find(restarted).kill()
            await mesh.find(restarted).start()
            await until(lambda: _serves_by_itself(mesh, "asia-northeast1"))
            served_after_s = time.time() - killed_s
            await asyncio.sleep(max(0.0, seconds - served_after_s))
        finally:
            away_s = time.time() - killed_s
            await mesh.control_plane.start()
    check_no_error(found.results)
    await until(lambda: _is_known(mesh, before))
    # The network is measured anew; until then the router goes by distance.
    await until(lambda: _all_measured(mesh))
    # Who is cheapest may be another one by now: throughput is measured, and one of the nodes began anew.
    await choice_and_other(mesh, "file-type", region)
    mesh.write_state()
    return {
        "away_s": round(away_s, 1),
        "node_served_from_its_store_after_s": round(served_after_s, 1),
        "loads": [summary(result) for result in found.results],
    }


async def until(holds: Callable[[], Awaitable[bool]], within_s: float = BACK_WITHIN_S) -> None:
    """Waits for something that other processes bring about. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while True:
            if await holds():
                return
            await asyncio.sleep(LOOK_AGAIN_S)


async def choice_and_other(mesh: LocalMesh, model: str, region: str) -> tuple[str, str]:
    """The node that answers now, and the one that would be soonest beside it.

    Both well within the deadline: what an earlier scenario left in their measurements has to pass first.
    """
    found: list[str] = []

    async def settled() -> bool:
        async with mesh.admin() as admin:
            route = await admin.explain(model, region)
        limit_ms = CERTAIN_SHARE * route.deadline_ms
        sure = [c for c in route.candidates if c.ready and _total_ms(c) < limit_ms]
        first, others = route.candidates[0], [c for c in sure if c.node != route.candidates[0].node]
        found[:] = [first.node, min(others, key=_total_ms).node] if first in sure and others else []
        return bool(found)

    await until(settled, SETTLED_WITHIN_S)
    # A gateway that met a fault in an earlier scenario leaves that node out for some seconds, whatever the routes say.
    await until(lambda: _gateway_follows(mesh, model, region, found[0]))
    return found[0], found[1]


@asynccontextmanager
async def preferred(mesh: LocalMesh, model: str, region: str) -> AsyncIterator[str]:
    """The node that answers, and so much cheaper meanwhile that nothing but a fault takes traffic from it.

    Throughput is measured, and prices with it: two nodes that cost about the same change places under load.
    """
    await until(lambda: _whole(mesh, model, region))
    node, _ = await choice_and_other(mesh, model, region)
    async with mesh.admin() as admin:
        (usd_per_hour,) = (found.usd_per_hour for found in await admin.nodes() if found.id == node)
        await admin.set_price(node, usd_per_hour / 4)
        try:
            await until(lambda: _gateway_follows(mesh, model, region, node))
            yield node
        finally:
            await admin.set_price(node, usd_per_hour)


async def _gateway_follows(mesh: LocalMesh, model: str, region: str, node: str) -> bool:
    """Whether the region's gateway sends its calls where the routes lead."""
    if model == "voice-activity":
        model = "file-type"
        async with mesh.admin() as admin:
            node = (await admin.explain(model, region)).candidates[0].node
    sample = unary_sample(model)
    state = json.loads((mesh.plan.folder / MESH_FILE).read_text("utf-8"))
    request: service_pb2.ModelInferRequest = tensors.encode_request(sample.model, sample.inputs)
    request.parameters["nearmesh_receipt"].bool_param = True
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(state["gateways"][region]["address"], options=options) as channel:
        try:
            answer = await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=5.0)
        except grpc.RpcError:
            return False
    return str(answer.parameters["nearmesh_node"].string_param) == node


def _total_ms(candidate: Any) -> float:
    return float(candidate.network_ms_p95 + candidate.service_ms_p95)


async def _whole(mesh: LocalMesh, model: str, region: str) -> bool:
    """Whether every node is there, for those that one of them will not answer."""
    async with mesh.admin() as admin:
        return all(candidate.ready for candidate in (await admin.explain(model, region)).candidates)


async def is_ready(mesh: LocalMesh, model: str, region: str, node: str) -> bool:
    async with mesh.admin() as admin:
        route = await admin.explain(model, region)
    return any(candidate.node == node and candidate.ready for candidate in route.candidates)


async def _known(mesh: LocalMesh) -> dict[str, Any]:
    """What the control plane must not forget."""
    async with mesh.admin() as admin:
        nodes = {n.id: (n.site, n.region, n.public_address, n.usd_per_hour, n.removed) for n in await admin.nodes()}
        models = {m.name: [(v.version, v.digest) for v in m.versions] for m in await admin.models()}
        deployed = {m.name: [(d.version, tuple(d.sites)) for d in m.deployments] for m in await admin.models()}
    return {"nodes": nodes, "models": models, "deployed": deployed}


async def _is_known(mesh: LocalMesh, before: dict[str, Any]) -> bool:
    """The same as before, and every node is back."""
    try:
        async with mesh.admin() as admin:
            live = all(node.live for node in await admin.nodes())
    except Unreachable:
        return False
    return live and await _known(mesh) == before


async def _all_measured(mesh: LocalMesh) -> bool:
    async with mesh.admin() as admin:
        return all(latency.measured for latency in await admin.latencies())


async def _serves_by_itself(mesh: LocalMesh, region: str) -> bool:
    """Asks a node at its own listener."""
    sample = unary_sample("file-type")
    credentials = grpc.ssl_channel_credentials(mesh.ca_path.read_bytes())
    options = [("grpc.ssl_target_name_override", node_server_name("dev", node_of(region)))]
    metadata = (("authorization", f"Bearer {mesh.token('client')}"),)
    address = local(mesh.plan.nodes[region].public)
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request: service_pb2.ModelInferRequest = tensors.encode_request(sample.model, sample.inputs)
        try:
            response = await stub.ModelInfer(request, metadata=metadata, timeout=2.0)
        except grpc.RpcError:
            return False
    return bool(sample.check(tensors.decode_response(response)))


async def lost_sequences(mesh: LocalMesh, region: str) -> Figures:
    """kill -9 of the node in the middle of a sequence on each way in; each ends with ABORTED, SEQUENCE_LOST."""
    state = str(mesh.plan.folder / MESH_FILE)
    command = [script("python"), "-m", "tests.faults.sequence_client"]
    clients = [Conversation(leashed([*command, way, region, state])) for way in WAYS]
    ended_s = {}
    try:
        for client in clients:
            await client.start()
        began = {way: (await client.hear("began"))["node"] for way, client in zip(WAYS, clients, strict=True)}
        ((node, _),) = Counter(began.values()).most_common(1)
        killed_s = time.time()
        await mesh.find(node).kill()
        for way, client in zip(WAYS, clients, strict=True):
            if began[way] != node:
                continue
            client.go_on()
            end = await client.hear("ended")
            ended_s[way] = round(time.time() - killed_s, 2)
            assert (end["status"], end["reason"]) == ("ABORTED", "SEQUENCE_LOST"), (way, end)
    finally:
        for client in clients:
            await client.close()
        if not mesh.find(node).pid:
            await mesh.find(node).start()
    await until(lambda: is_ready(mesh, "voice-activity", region, node), SETTLED_WITHIN_S)
    mesh.write_state()
    return {"ended_within_s": ended_s}


async def frozen_node(mesh: LocalMesh, region: str, model: str, ways: Sequence[str] = ("gateway", "sdk")) -> Figures:
    """SIGSTOP of the node that answers, under load: it is there and says nothing. A plain xDS client is left out,
    since it cannot retry by time."""
    async with (
        preferred(mesh, model, region) as before,
        loads(mesh, model, region=region, ways=ways, rate=RATES[model], seconds=BEFORE_S + 8.0) as found,
    ):
        await asyncio.sleep(BEFORE_S)
        child = mesh.find(before)
        frozen_s = time.time()
        child.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(6.0)
        finally:
            thawed_s = time.time()
            child.signal(signal.SIGCONT)
    check_met(found.results, node=before, until_s=frozen_s)
    check_no_error(found.results)
    # Silence takes longer to notice than a broken connection.
    check_moved(found.results, away_from=before, after_s=frozen_s, until_s=thawed_s, within_s=2 * MOVED_WITHIN_S)
    await until(lambda: is_ready(mesh, model, region, before), SETTLED_WITHIN_S)
    moved = moved_after_s(found.results, away_from=before, after_s=frozen_s, until_s=thawed_s)
    return {"moved_within_s": round(moved, 3), "loads": [summary(result) for result in found.results]}
