"""A node's life: restarts with and without a control plane, certificates that are renewed, an orderly end."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2

from nearmesh.v1 import node_pb2
from tests.integration.adding_model import adding, counting
from tests.integration.mesh_processes import (
    REGION,
    ControlPlane,
    Node,
    calling,
    control_plane,
    node,
    question,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

READY = node_pb2.REPLICA_STATE_READY
NOWHERE = "http://127.0.0.1:1"
# What no machine counts to.
FOR_EVER = 2**40
# Start of a process, and a load from the local store.
BACK_WITHIN_S = 10.0


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """A control plane whose nodes have a model, on which nobody changes what is deployed."""
    async with control_plane(tmp_path_factory.mktemp("control-plane")) as found:
        async with found.operator() as operator:
            await operator.publish(adding(tmp_path_factory.mktemp("adder"), "adder", "1", 1.0))
            await operator.publish(counting(tmp_path_factory.mktemp("counter"), "counter"))
            for model in ("adder", "counter"):
                await operator.deploy(model, "1")
        yield found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def standing(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node for tests that end none; those who may say that its machine is taken away say nothing that is a notice."""
    folder = tmp_path_factory.mktemp("standing")
    (folder / "notice").write_text("<html>no</html>")
    notice = {"file": str(folder / "notice"), "metadata": "aws", "url": NOWHERE, "every_s": 0.1}
    async with node(plane, folder, "standing", notice=notice) as found:
        await found.serves("adder", "1")
        yield found


async def test_p2_agents_serve_while_the_control_plane_is_dead_and_come_back_to_it(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with (
        node(plane, tmp_path / "stays", "stays") as stays,
        node(plane, tmp_path / "restarts", "restarts") as other,
    ):
        for each in (stays, other):
            await each.serves("adder", "1")
        async with calling(stays, "adder") as caller:
            await caller.goes_on()
            await plane.kill()
            await other.kill()
            started = time.monotonic()
            await other.start()
            await other.serves("adder", "1", within_s=BACK_WITHIN_S)
            assert time.monotonic() - started < BACK_WITHIN_S
            await other.logged("serving from the local store until the control plane speaks")
            await caller.goes_on()
            await plane.start()
            for each in (stays, other):
                await each.live()
                await each.says("adder", lambda r: r.status.state == READY and r.live)
            await caller.goes_on()
            assert caller.errors == []


async def test_a_frozen_node_counts_as_lost_and_comes_back_when_it_thaws(plane: ControlPlane, standing: Node) -> None:
    async with plane.operator() as operator:
        standing.child.signal(signal.SIGSTOP)
        try:

            async def lost() -> bool:
                return not any(one.live for one in await operator.nodes() if one.id == standing.name)

            await until(lost, within_s=10)
        finally:
            standing.child.signal(signal.SIGCONT)
        await standing.live()
        assert "bug in method" not in plane.log


async def test_an_operators_price_stays_when_the_node_brings_another(plane: ControlPlane, tmp_path: Path) -> None:
    async def price() -> float:
        async with plane.operator() as operator:
            return next(one.usd_per_hour for one in await operator.nodes() if one.id == "priced")

    async with node(plane, tmp_path, "priced", usd_per_hour=1.0) as agent:
        assert await price() == 1.0
        await agent.kill()
        _set(agent, "usd_per_hour", 3.0)
        await agent.start()

        async def taken_over() -> bool:
            return await price() == 3.0

        await until(taken_over)
        async with plane.operator() as operator:
            assert (await operator.set_price("priced", 2.0)).usd_per_hour == 2.0
        opened = plane.log.count("session opened node=priced")
        await agent.kill()
        _set(agent, "usd_per_hour", 4.0)
        await agent.start()

        async def back() -> bool:
            return plane.log.count("session opened node=priced") > opened

        await until(back)
        assert await price() == 2.0


def _set(agent: Node, key: str, value: Any) -> None:
    path = agent.child.log_path.with_suffix(".toml")
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join(f"{key} = {json.dumps(value)}" if line.startswith(f"{key} =") else line for line in lines)
    )


# The end


async def test_sigterm_leaves_the_routes_first_and_answers_what_is_in_flight(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with node(plane, tmp_path, "ends") as agent, plane.operator() as operator:
        await agent.serves("adder", "1")
        await agent.says("counter", lambda r: r.status.state == READY)
        long = asyncio.ensure_future(_count(agent, await _rounds_for(agent, 2.5)))
        await agent.says("counter", lambda r: r.status.in_flight == 1)
        agent.child.signal(signal.SIGTERM)

        async def withdrawn() -> bool:
            candidates = (await operator.explain("adder", REGION)).candidates
            return not next(c for c in candidates if c.node == "ends").ready

        await until(withdrawn)
        assert not long.done()
        rounds, answer = await long
        assert answer == rounds
        assert await agent.exit_code(15) == 0
        assert "did not confirm" not in agent.log
        assert "Traceback" not in agent.log


async def test_until_the_routes_lead_elsewhere_a_leaving_node_answers(plane: ControlPlane, tmp_path: Path) -> None:
    """The control plane is frozen and cannot confirm; a client that has not heard still gets its answer."""
    async with node(plane, tmp_path, "patient") as agent:
        await agent.serves("adder", "1")
        stub, channel = agent.stub(), agent.channel()
        plane.child.signal(signal.SIGSTOP)
        try:
            agent.child.signal(signal.SIGTERM)
            await agent.logged("leaving")
            answer = await stub.ModelInfer(question("adder"), timeout=2)
            assert answer.model_version == "1"
            # Whoever asks before sending work is told at once.
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await agent.exit_code(15) == 0
        finally:
            plane.child.signal(signal.SIGCONT)


async def test_a_request_that_outlives_the_grace_does_not_keep_the_node(plane: ControlPlane, tmp_path: Path) -> None:
    async with node(plane, tmp_path, "strict", grace_s=0.5) as agent:
        await agent.says("counter", lambda r: r.status.state == READY)
        long = asyncio.ensure_future(_count(agent, FOR_EVER))
        await agent.says("counter", lambda r: r.status.in_flight == 1)
        agent.child.signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await long
        # The engine's call itself cannot be broken off; nothing waits for its answer.
        assert await agent.exit_code(10) == 0


async def test_a_notice_in_a_file_sends_the_node_away_in_time(plane: ControlPlane, tmp_path: Path) -> None:
    file, notice_s = tmp_path / "notice", 6.0
    async with (
        node(plane, tmp_path, "spot", spot=True, notice={"file": str(file), "every_s": 0.1}) as agent,
        plane.operator() as operator,
    ):
        await agent.serves("adder", "1")
        await agent.says("counter", lambda r: r.status.state == READY)
        long = asyncio.ensure_future(_count(agent, await _rounds_for(agent, 1.5)))
        await agent.says("counter", lambda r: r.status.in_flight == 1)
        started = time.monotonic()
        file.write_text(json.dumps({"action": "terminate", "seconds": notice_s}))

        async def told() -> Any:
            return next((n for n in await operator.nodes() if n.id == "spot" and n.notice), None)

        seen = await until(told, within_s=2.0)
        assert seen.notice == "terminate" and notice_s - 2 < seen.notice_s <= notice_s
        assert not next(c for c in (await operator.explain("adder", REGION)).candidates if c.node == "spot").ready
        rounds, answer = await long
        assert answer == rounds, "what it had begun was answered"
        assert await agent.exit_code(notice_s) == 0
        assert time.monotonic() - started < notice_s
        assert "did not confirm" not in agent.log and "Traceback" not in agent.log
        # Started again while the notice stands, it finds it and leaves again; an hour later it would not.
        file.write_text("5")
        await agent.child.start()
        assert await agent.exit_code() == 0


async def test_a_notice_that_is_shorter_than_the_work_ends_the_node_all_the_same(
    plane: ControlPlane, tmp_path: Path
) -> None:
    file = tmp_path / "notice"
    async with node(plane, tmp_path, "hasty", grace_s=60.0, notice={"file": str(file), "every_s": 0.1}) as agent:
        await agent.says("counter", lambda r: r.status.state == READY)
        long = asyncio.ensure_future(_count(agent, FOR_EVER))
        await agent.says("counter", lambda r: r.status.in_flight == 1)
        started = time.monotonic()
        file.write_text("4")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await long
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await agent.exit_code(4.0) == 0
        assert time.monotonic() - started < 4.0


async def test_what_is_no_notice_changes_nothing(standing: Node) -> None:
    await standing.logged(f"no notice in {standing.data.parent / 'notice'}: ")
    await standing.logged(f"no notice from {NOWHERE}: ")
    await standing.serves("adder", "1")
    assert "leaving" not in standing.log


async def test_a_model_that_is_being_loaded_does_not_keep_the_node(tmp_path: Path) -> None:
    async with (
        control_plane(tmp_path / "plane") as plane,
        plane.operator() as operator,
        node(plane, tmp_path / "node", "loads") as agent,
    ):
        await operator.publish(counting(tmp_path / "counter", "counter", warm=2**40))
        await operator.deploy("counter", "1")
        await agent.says("counter", lambda r: r.status.state == node_pb2.REPLICA_STATE_LOADING)
        agent.child.signal(signal.SIGTERM)
        assert await agent.exit_code(15) == 0


async def _count(agent: Node, rounds: int) -> tuple[int, int]:
    request = service_pb2.ModelInferRequest(model_name="counter")
    request.inputs.add(name="x", datatype="INT64", shape=[1])
    request.raw_input_contents.append(np.array([rounds], np.int64).tobytes())
    answer = await agent.stub().ModelInfer(request, timeout=60)
    return rounds, int(np.frombuffer(answer.raw_output_contents[0], np.int64)[0])


async def _rounds_for(agent: Node, seconds: float) -> int:
    """How far this machine counts in that time; from a sample that is long against a connection and a message."""
    sample = 10_000
    while True:
        sample *= 4
        started = time.monotonic()
        await _count(agent, sample)
        elapsed_s = time.monotonic() - started
        if elapsed_s > 0.4:
            return int(sample * seconds / elapsed_s)


# One of a kind


async def _run(*command: str, within_s: float = 30.0) -> tuple[int, str]:
    """Exit code and standard error of one of the programs."""
    program = Path(sys.executable).with_name(command[0])
    process = await asyncio.create_subprocess_exec(
        str(program), *command[1:], stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, error = await asyncio.wait_for(process.communicate(), within_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, error.decode()


async def test_a_second_agent_on_one_folder_says_so_in_one_line(standing: Node) -> None:
    code, said = await _run("nearmesh-agent", "--config", str(standing.child.log_path.with_suffix(".toml")))
    assert code == 1
    assert said.splitlines() == [f"Error: an agent in {standing.data} is running already (pid {standing.child.pid})"]


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('data = "data"\nusd_per_hours = 1', "unknown key 'usd_per_hours'; did you mean 'usd_per_hour'?"),
        ('data = "data"\nusd_per_hour = -1', "usd_per_hour must be 0 or more, got -1.0"),
        ('data = "data"\nthreads = "two"', "threads: expected int, got 'two'"),
        ("threads = 1", "key 'data' is missing"),
        ('data = "data"\n[listen]\npublik = "127.0.0.1:1"', "unknown key 'publik'; did you mean 'public'?"),
        ('data = "data"', "holds no membership yet: give a join token"),
        ("data = ", "node.toml"),
    ],
)
async def test_a_wrong_configuration_is_one_clear_line(tmp_path: Path, toml: str, said: str) -> None:
    (tmp_path / "node.toml").write_text(toml)
    code, error = await _run("nearmesh-agent", "--config", str(tmp_path / "node.toml"))
    assert code == 1
    (line,) = error.splitlines()
    assert line.startswith("Error: ") and said in line


async def test_a_port_that_is_taken_is_one_clear_line(plane: ControlPlane, tmp_path: Path) -> None:
    for number, listener in enumerate(("public", "metrics")):
        taken = Node(plane, tmp_path / listener, f"taken-{number}")
        config = taken.child.log_path.with_suffix(".toml")
        lines = config.read_text().splitlines()
        config.write_text(
            "\n".join(f'{listener} = "{plane.public}"' if line.startswith(f"{listener} =") else line for line in lines)
        )
        (tmp_path / listener / "join.jwt").write_text(await plane.join_token(f"taken-{number}"))
        code, said = await _run("nearmesh-agent", "--config", str(config), "--log-level", "error")
        assert code == 1
        (line,) = [line for line in said.splitlines() if not line.startswith(("E0", "I0", "W0", "E1", "I1", "W1"))]
        assert line.startswith("Error: cannot ") and plane.public in line


async def test_metrics_are_served_beside_the_listeners(plane: ControlPlane, standing: Node) -> None:
    async with plane.operator() as operator:
        address = next(one.metrics_address for one in await operator.nodes() if one.id == standing.name)
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"http://{address}/metrics")).text
    assert "nearmesh" in text and "adder" in text
