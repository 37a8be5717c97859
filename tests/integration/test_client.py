"""The SDK against real gRPC servers over the emulated WAN: right answers, failover, life without a control plane."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nearmesh.client
from nearmesh import errors
from nearmesh.client import Mesh
from nearmesh.client.blocking import BlockingMesh
from nearmesh.client.bootstrap import grpc_bootstrap, write_bootstrap
from tests.client_mesh import MODEL, TOKEN, FakeMesh, fake_mesh

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
async def fakes() -> AsyncIterator[FakeMesh]:
    async with fake_mesh() as found:
        yield found


@pytest.fixture
async def mesh(fakes: FakeMesh) -> AsyncIterator[Mesh]:
    async with fakes.client() as found:
        yield found


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - probes and reconnects say nothing to a test
            await asyncio.sleep(0.01)


async def until_near_answers(mesh: Mesh) -> None:
    async with asyncio.timeout(30):
        while (await mesh.infer(MODEL, {"x": X})).receipt.node != "near":  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)


async def test_the_nearest_node_answers_with_a_receipt(fakes: FakeMesh, mesh: Mesh) -> None:
    answer = await mesh.infer(MODEL, {"x": X})
    np.testing.assert_array_equal(answer["y"], X + 1)
    receipt = answer.receipt
    assert (receipt.node, receipt.region, receipt.site) == ("near", "near-region", "near-site")
    assert receipt.attempts[-1].node == "near" and "nearest" in receipt.why
    assert receipt.total_ms >= receipt.network_ms > 10


async def test_the_decision_that_calls_go_by_is_there_to_see(fakes: FakeMesh, mesh: Mesh) -> None:
    told = await mesh.explain(MODEL, objective="nearest")
    assert told.objective == "nearest" and {c.node for c in told.candidates} == {"near", "far"}
    await fakes.control_server.kill()
    assert await mesh.explain(MODEL, objective="nearest") == told
    with pytest.raises(errors.Unreachable):
        await mesh.explain("nobody-asked-before", deadline_s=0.2)


async def test_a_bootstrap_file_is_all_it_takes_and_nothing_is_left_running(fakes: FakeMesh, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(fakes.authority.pem)
    address = f"127.0.0.1:{fakes.control_server.port}"
    write_bootstrap(tmp_path / "b.json", grpc_bootstrap(address, tmp_path / "ca.pem", TOKEN, "here"))
    before = asyncio.all_tasks()
    async with nearmesh.client.connect(tmp_path / "b.json") as mesh:
        assert (await mesh.infer(MODEL, {"x": X}))["y"].tolist() == (X + 1).tolist()
    ours = {task for task in asyncio.all_tasks() - before if "nearmesh/client" in str(task.get_coro())}
    assert not ours
    await mesh.close()


async def test_what_the_client_measures_itself_decides(fakes: FakeMesh, mesh: Mesh) -> None:
    assert (await mesh.infer(MODEL, {"x": X})).receipt.node == "near"
    fakes.control.say(fakes.candidate("near", network_ms_p50=500, network_ms_p95=500), fakes.candidate("far"))
    await until(lambda: len(mesh._experience.measured(now_s=asyncio.get_running_loop().time())) == 2)
    answer = await mesh.infer(MODEL, {"x": X})
    assert answer.receipt.node == "near" and answer.receipt.predicted_network_ms < 500


async def test_latencies_are_reported(fakes: FakeMesh, mesh: Mesh) -> None:
    await mesh.infer(MODEL, {"x": X})
    await until(lambda: fakes.control.reported.keys() == {"near", "far"})
    assert min(fakes.control.reported["near"]) >= 10
    assert min(fakes.control.reported["far"]) >= 40


async def test_calls_go_where_the_control_plane_placed_them(fakes: FakeMesh) -> None:
    fakes.control.say(fakes.candidate("near", share=0.25), fakes.candidate("far", share=0.75, why="placed by hand"))
    async with Mesh(fakes.settings(), chance=random.Random(3)) as mesh:
        answers = [await mesh.infer(MODEL, {"x": X}) for _ in range(40)]
    far = [answer.receipt for answer in answers if answer.receipt.node == "far"]
    assert 22 <= len(far) <= 38
    assert (far[0].share, far[0].why) == (0.75, "placed here: share 0.75 of this region; placed by hand")


async def test_p7_a_call_that_takes_too_long_is_hedged_and_cancelled_where_it_was_slow(
    fakes: FakeMesh, mesh: Mesh
) -> None:
    await mesh.warm(MODEL)
    await mesh.infer(MODEL, {"x": X})
    fakes.nodes["near"].wait_s = 30
    before = mesh.statistics()
    answer = await mesh.infer(MODEL, {"x": X})
    assert answer.receipt.node == "far" and answer.receipt.hedged
    await until(lambda: fakes.nodes["near"].cancelled == 1)
    found = mesh.statistics()
    assert (found.calls, found.failed, found.silences) == (before.calls + 1, 0, 0)
    assert (found.hedges, found.hedges_won) == (before.hedges + 1, before.hedges_won + 1)


async def test_p1_a_node_whose_engine_is_broken_costs_no_error_and_comes_back_when_it_is_mended(
    fakes: FakeMesh, mesh: Mesh
) -> None:
    fakes.nodes["near"].error = errors.EngineFailure("broken")
    for _ in range(6):
        assert (await mesh.infer(MODEL, {"x": X})).receipt.node == "far"
    assert mesh.statistics().nodes["near"].states == {MODEL: "ejected"}
    fakes.nodes["near"].error = None
    await until_near_answers(mesh)
    found = mesh.statistics()
    assert found.ejections >= 1 and found.trials >= 3 and found.hedges + found.trials <= 2 + found.calls / 10


async def test_what_calls_came_to_is_reported(fakes: FakeMesh, mesh: Mesh) -> None:
    for _ in range(4):
        await mesh.infer(MODEL, {"x": X}, objective="nearest")
    await until(lambda: sum(report.answered for report in fakes.control.calls) == 4)
    report = fakes.control.calls[0]
    assert (report.model, report.node, report.objective, report.failed) == (MODEL, "near", "nearest", 0)
    assert report.total_ms >= 10 * report.answered and report.predicted_ms > 10 * report.answered


async def test_a_cheaper_node_takes_over_when_the_price_moves(fakes: FakeMesh, mesh: Mesh) -> None:
    async def node() -> str:
        return (await mesh.infer(MODEL, {"x": X}, objective="cheapest-in-time")).receipt.node

    assert await node() == "near"
    fakes.control.say(fakes.candidate("near"), fakes.candidate("far", usd_per_1000=0.1))
    async with asyncio.timeout(2):
        while await node() != "far":
            pass


async def test_no_call_fails_when_the_answering_node_is_killed_and_it_is_back_after_a_restart(
    fakes: FakeMesh, mesh: Mesh
) -> None:
    await mesh.infer(MODEL, {"x": X})
    calls = []
    for index in range(40):
        calls.append(asyncio.create_task(mesh.infer(MODEL, {"x": X})))
        await asyncio.sleep(0.02)
        if index == 20:
            await fakes.servers["near"].kill()
    answers = await asyncio.gather(*calls)
    assert answers[0].receipt.node == "near" and answers[-1].receipt.node == "far"
    await fakes.servers["near"].start()
    await until_near_answers(mesh)


async def test_a_frozen_node_costs_the_calls_under_way_a_moment_and_no_error(fakes: FakeMesh, mesh: Mesh) -> None:
    await mesh.infer(MODEL, {"x": X})
    fakes.links["near"].freeze()
    answers = await asyncio.gather(*(mesh.infer(MODEL, {"x": X}) for _ in range(20)))
    assert {answer.receipt.node for answer in answers} == {"far"}
    assert max(answer.receipt.total_ms for answer in answers) < 3000
    again = await mesh.infer(MODEL, {"x": X})
    assert again.receipt.node == "far" and len(again.receipt.attempts) == 1
    await fakes.links["near"].heal()
    await until_near_answers(mesh)


async def test_a_cut_link_is_survived(fakes: FakeMesh, mesh: Mesh) -> None:
    await mesh.infer(MODEL, {"x": X})
    await fakes.links["near"].cut()
    answers = await asyncio.gather(*(mesh.infer(MODEL, {"x": X}) for _ in range(10)))
    assert {answer.receipt.node for answer in answers} == {"far"}


async def test_large_requests_survive_a_cut_on_their_way(fakes: FakeMesh, mesh: Mesh) -> None:
    await mesh.infer(MODEL, {"x": X})
    big = np.random.default_rng(1).random((1500, 1000), dtype=np.float32)
    call = asyncio.create_task(mesh.infer(MODEL, {"x": big}))
    before = fakes.links["near"].up.delivered_bytes
    await until(lambda: fakes.links["near"].up.delivered_bytes > before + 100_000)
    await fakes.links["near"].cut()
    answer = await call
    np.testing.assert_array_equal(answer["y"], big + 1)
    assert answer.receipt.node == "far"


async def test_an_overloaded_node_sheds_to_the_next(fakes: FakeMesh, mesh: Mesh) -> None:
    fakes.nodes["near"].error = errors.Overloaded("the queue is full", retry_after_ms=100)
    answer = await mesh.infer(MODEL, {"x": X})
    assert [attempt.node for attempt in answer.receipt.attempts] == ["near", "far"]
    assert answer.receipt.attempts[0].error.startswith("OVERLOADED")


async def test_calls_go_on_without_the_control_plane_and_follow_it_again_after_its_restart(
    fakes: FakeMesh, mesh: Mesh
) -> None:
    await mesh.infer(MODEL, {"x": X})
    await fakes.control_server.kill()
    for _ in range(5):
        await mesh.infer(MODEL, {"x": X})
    await fakes.servers["near"].kill()
    assert (await mesh.infer(MODEL, {"x": X})).receipt.node == "far"
    await fakes.servers["near"].start()
    # It comes back and knows no node yet: those that were known still serve.
    fakes.control.say()
    await fakes.control_server.start()
    await until(lambda: "no longer names it" in repr(mesh._routes.endpoints()))
    assert (await mesh.infer(MODEL, {"x": X})).receipt.node in ("near", "far")
    fakes.control.say(fakes.candidate("far"))
    await until(lambda: any(e.node == "far" and e.candidate.ready for e in mesh._routes.endpoints()))
    assert (await mesh.infer(MODEL, {"x": X})).receipt.node == "far"


async def test_a_first_call_without_a_control_plane_says_so_at_its_deadline(fakes: FakeMesh, mesh: Mesh) -> None:
    await fakes.control_server.kill()
    with pytest.raises(errors.Unreachable, match="no route for adder from the control plane at 127"):
        await mesh.infer(MODEL, {"x": X}, deadline_s=0.5)


async def test_an_unknown_model_is_not_found_at_once(mesh: Mesh) -> None:
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(errors.NotFound, match="no model is called 'moon'"):
            await mesh.infer("moon", {"x": X})
        assert time.monotonic() - start < 2


async def test_a_wrong_input_is_the_callers_error(fakes: FakeMesh, mesh: Mesh) -> None:
    with pytest.raises(errors.InvalidInput, match="'x' is expected"):
        await mesh.infer(MODEL, {"z": X})
    with pytest.raises(errors.InvalidInput, match="'fastest' is not one of"):
        await mesh.infer(MODEL, {"x": X}, objective="fastest")  # type: ignore[arg-type]


async def test_a_deadline_is_kept(fakes: FakeMesh, mesh: Mesh) -> None:
    await mesh.infer(MODEL, {"x": X})
    for node in fakes.nodes.values():
        node.wait_s = 30
    start = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        await mesh.infer(MODEL, {"x": X}, deadline_s=0.5)
    assert 0.5 <= time.monotonic() - start < 5


async def test_a_sequence_keeps_its_state_on_one_node(fakes: FakeMesh, mesh: Mesh) -> None:
    async with mesh.sequence(MODEL) as sequence:
        assert sequence.node is None
        for expected in (1, 2, 3):
            answer = await sequence.infer({"x": np.ones(1, np.int64)})
            assert answer["y"].tolist() == [expected] and answer.receipt.node == "near"
        with pytest.raises(errors.InvalidInput, match="no x"):
            await sequence.infer({"z": np.ones(1, np.int64)})
        assert (await sequence.infer({"x": np.ones(1, np.int64)}, last=True))["y"].tolist() == [4]
        with pytest.raises(errors.SequenceLost, match="its last call was made"):
            await sequence.infer({"x": np.ones(1, np.int64)})


async def test_a_sequence_begins_elsewhere_when_the_first_choice_is_gone(fakes: FakeMesh, mesh: Mesh) -> None:
    await mesh.infer(MODEL, {"x": X})
    await fakes.servers["near"].kill()
    async with mesh.sequence(MODEL) as sequence:
        answer = await sequence.infer({"x": np.ones(1, np.int64)})
    assert answer.receipt.node == "far"


@pytest.mark.parametrize("how", ["kill", "cut", "freeze"])
async def test_a_sequence_is_lost_with_its_node(fakes: FakeMesh, mesh: Mesh, how: str) -> None:
    async with mesh.sequence(MODEL, deadline_s=3.0) as sequence:
        await sequence.infer({"x": np.ones(1, np.int64)})
        if how == "kill":
            await fakes.servers["near"].kill()
        elif how == "cut":
            await fakes.links["near"].cut()
        else:
            fakes.links["near"].freeze()
        start = time.monotonic()
        with pytest.raises(errors.SequenceLost, match="on node near was lost"):
            await sequence.infer({"x": np.ones(1, np.int64)})
        assert time.monotonic() - start < 6
        with pytest.raises(errors.SequenceLost, match="begin a new one"):
            await sequence.infer({"x": np.ones(1, np.int64)})
        assert sequence.node == "near"


async def test_the_sync_face_answers_and_closes(fakes: FakeMesh) -> None:
    def script() -> list[float]:
        with BlockingMesh(Mesh(fakes.settings())) as mesh:
            answer = mesh.infer(MODEL, {"x": X})
            with mesh.sequence(MODEL) as sequence:
                sequence.infer({"x": np.ones(1, np.int64)})
                assert sequence.node == "near"
            assert mesh.statistics().nodes["near"].answered == 1
            with pytest.raises(errors.NotFound):
                mesh.infer("moon", {"x": X})
        return [float(value) for value in answer["y"].flat]

    assert await asyncio.to_thread(script) == [1, 2, 3, 4, 5, 6]


async def test_a_node_that_no_longer_has_the_model_ends_the_sequence(fakes: FakeMesh, mesh: Mesh) -> None:
    async with mesh.sequence(MODEL) as sequence:
        await sequence.infer({"x": np.ones(1, np.int64)})
        fakes.nodes["near"].error = errors.NotReady("being unloaded")
        with pytest.raises(errors.SequenceLost, match="on node near was lost: being unloaded"):
            await sequence.infer({"x": np.ones(1, np.int64)})
        fakes.nodes["near"].error = None
        with pytest.raises(errors.SequenceLost, match="begin a new one"):
            await sequence.infer({"x": np.ones(1, np.int64)})


@pytest.mark.parametrize(("deadline_s", "out"), [(0.05, set()), (5.0, {"near"})])
async def test_a_sequences_short_deadline_proves_nothing_against_the_node(
    fakes: FakeMesh, mesh: Mesh, deadline_s: float, out: set[str]
) -> None:
    await mesh.warm(MODEL)
    for node in fakes.nodes.values():
        node.wait_s = 30
    fakes.nodes["far"].wait_s = 30 if deadline_s < 1 else 0
    async with mesh.sequence(MODEL) as sequence:
        if deadline_s < 1:
            with pytest.raises(errors.DeadlineExceeded):
                await sequence.infer({"x": np.ones(1, np.int64)}, deadline_s=deadline_s)
        else:
            assert (await sequence.infer({"x": np.ones(1, np.int64)}, deadline_s=deadline_s)).receipt.node == "far"
        assert set(mesh._experience.out(MODEL, now_s=asyncio.get_running_loop().time())) == out


async def test_the_sync_face_outside_of_its_block_says_so(fakes: FakeMesh) -> None:
    def script() -> None:
        mesh = BlockingMesh(Mesh(fakes.settings()))
        with pytest.raises(errors.ConfigError, match="use it inside `with connect_sync"):
            mesh.infer(MODEL, {"x": X})
        with mesh:
            mesh.infer(MODEL, {"x": X})
        with pytest.raises(errors.ConfigError, match="is not open"):
            mesh.infer(MODEL, {"x": X})

    await asyncio.wait_for(asyncio.to_thread(script), 30)


async def test_leaving_the_sync_face_ends_the_calls_of_other_threads(fakes: FakeMesh) -> None:
    entered, leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    calls: list[asyncio.Future[Any]] = []

    def use() -> None:
        with BlockingMesh(Mesh(fakes.settings())) as mesh:
            mesh.infer(MODEL, {"x": X})
            for node in fakes.nodes.values():
                node.wait_s = 30
            calls.append(loop.run_in_executor(None, mesh.infer, MODEL, {"x": X}))
            calls.append(loop.run_in_executor(None, in_a_sequence, mesh))
            loop.call_soon_threadsafe(entered.set)
            assert leave.wait(20)

    def in_a_sequence(mesh: BlockingMesh) -> None:
        with mesh.sequence(MODEL) as sequence:
            sequence.infer({"x": np.ones(1, np.int64)})

    script = loop.run_in_executor(None, use)
    await entered.wait()
    await fakes.nodes["near"].waiting.wait()
    leave.set()
    await asyncio.wait_for(script, 20)
    for call in calls:
        with pytest.raises((errors.Unreachable, errors.ConfigError), match=r"closed while this call|is not open"):
            await asyncio.wait_for(call, 20)
