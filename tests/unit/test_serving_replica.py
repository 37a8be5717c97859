"""Replicas over an engine that the test steers: the queue, deadlines, cancellation, warm-up, stall and close."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from nearmesh_agent.serving.replica import Replica, ReplicaConfig
from nearmesh_agent.serving.table import ReplicaTable

from nearmesh.errors import (
    ConfigError,
    DeadlineExceeded,
    EngineFailure,
    NotFound,
    NotReady,
    Overloaded,
    PackageError,
    WarmupFailed,
)
from nearmesh.package import Sequence, Warmup
from tests.gated_engine import Gate
from tests.tiny_models import package, spec, write_warmup

PACKAGE = package("doubler", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)])
INPUT = {"x": np.array([1.0, 2.0], np.float32)}


def replica_of(engine, *, described=PACKAGE, clock=None, **config):
    options = {"clock": clock} if clock else {}
    return Replica(described, "sha256:1", engine, config=ReplicaConfig(**config), **options)


async def test_an_answer_and_its_times():
    replica = replica_of(Gate())
    answer = await replica.infer(INPUT)
    assert answer.outputs["y"].tolist() == [2, 4]
    assert answer.queue_ms >= 0 and answer.compute_ms > 0
    assert replica.stats().in_flight == 0
    await replica.close()


async def test_p6_a_full_queue_refuses_at_once():
    engine = Gate(is_open=False)
    replica = replica_of(engine, queue=2)
    accepted = [asyncio.create_task(replica.infer(INPUT)) for _ in range(3)]
    await engine.entered()
    assert replica.stats().in_flight == 3

    with pytest.raises(Overloaded, match="2 requests wait for doubler-1") as caught:
        await replica.infer(INPUT)
    assert caught.value.retry_after_ms >= 1

    engine.open.set()
    assert [answer.outputs["y"].tolist() for answer in await asyncio.gather(*accepted)] == [[2, 4]] * 3
    assert engine.calls == 3
    await replica.close()


async def test_p6_a_queue_that_is_too_long_for_the_deadline_refuses_at_once():
    now = 0.0
    engine = Gate()
    replica = replica_of(engine, clock=lambda: now)
    replica._proven_s.append(0.1)
    engine.open.clear()
    accepted = [asyncio.create_task(replica.infer(INPUT)) for _ in range(3)]
    await engine.entered()
    with pytest.raises(Overloaded, match="about 300 ms; the request has 250 ms left") as caught:
        await replica.infer(INPUT, timeout_s=0.25)
    assert caught.value.retry_after_ms == 50
    accepted.append(asyncio.create_task(replica.infer(INPUT, timeout_s=0.35)))
    await asyncio.sleep(0)
    engine.open.set()
    assert len(await asyncio.gather(*accepted)) == engine.calls == 4
    # With nobody waiting, what is usual is no reason to refuse.
    await replica.infer(INPUT, timeout_s=0.05)
    await replica.close()


async def test_a_late_answer_counts_as_slow_and_never_as_fast():
    replica = replica_of(Gate())
    replica._proven_s.append(0.1)
    replica.too_late(1)
    assert replica.stats().service_ms_p95 == 100
    replica.too_late(5000)
    assert replica.stats().service_ms_p95 == 5000
    await replica.close()


async def test_p7_cancelled_requests_never_reach_the_engine():
    engine = Gate(is_open=False)
    replica = replica_of(engine, queue=2)
    first = asyncio.create_task(replica.infer(INPUT))
    await engine.entered()
    others = [asyncio.create_task(replica.infer(INPUT)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in others:
        task.cancel()
    assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*others, return_exceptions=True))
    assert replica.stats().in_flight == 1

    engine.open.set()
    await first
    await replica.close()
    assert engine.calls == 1


async def test_p7_expired_requests_never_reach_the_engine():
    now = 0.0
    engine = Gate(is_open=False)
    replica = replica_of(engine, clock=lambda: now)
    first = asyncio.create_task(replica.infer(INPUT))
    await engine.entered()
    late = asyncio.create_task(replica.infer(INPUT, timeout_s=0.5))
    await asyncio.sleep(0)
    now = 1.0
    engine.open.set()
    with pytest.raises(DeadlineExceeded, match=r"the deadline passed after 1\.000 s in the queue"):
        await late
    with pytest.raises(DeadlineExceeded, match="when it arrived"):
        await replica.infer(INPUT, timeout_s=0)
    await first
    assert engine.calls == 1
    await replica.close()


async def test_a_failed_call_leaves_the_next_one_right():
    replica = replica_of(Gate())
    with pytest.raises(EngineFailure):
        await replica.infer({"x": np.array([np.nan], np.float32)})
    assert (await replica.infer(INPUT)).outputs["y"].tolist() == [2, 4]
    await replica.close()


async def test_instances():
    engine = Gate(is_open=False)
    replica = replica_of(engine, described=replace(PACKAGE, instances=2))
    tasks = [asyncio.create_task(replica.infer(INPUT)) for _ in range(2)]
    await engine.entered()
    await engine.entered()
    engine.open.set()
    await asyncio.gather(*tasks)
    await replica.close()

    engine.thread_safe = False
    alone = replica_of(engine, described=replace(PACKAGE, instances=2))
    assert alone.instances == 1
    await alone.close()


async def test_p10_a_hung_engine_is_not_ready():
    now = 0.0
    engine = Gate(is_open=False)
    replica = replica_of(engine, clock=lambda: now, stall_s=4.0)
    assert replica.ready
    hung = asyncio.create_task(replica.infer(INPUT))
    await engine.entered()
    now = 3.0
    assert replica.ready
    now = 5.0
    assert not replica.ready
    engine.open.set()
    await hung
    assert replica.ready
    await replica.close()


async def test_close_waits_for_what_was_accepted():
    engine = Gate(is_open=False)
    replica = replica_of(engine)
    accepted = [asyncio.create_task(replica.infer(INPUT)) for _ in range(3)]
    await engine.entered()
    closing = asyncio.create_task(replica.close())
    await asyncio.sleep(0)
    with pytest.raises(NotReady, match="being unloaded"):
        await replica.infer(INPUT)
    assert engine.closed == 0
    engine.open.set()
    await closing
    assert len(await asyncio.gather(*accepted)) == 3
    assert engine.closed == 1


async def test_close_is_bounded_and_frees_nothing_that_is_in_use():
    engine = Gate(is_open=False)
    replica = replica_of(engine, close_s=0.05)
    tasks = [asyncio.create_task(replica.infer(INPUT)) for _ in range(2)]
    await engine.entered()
    await replica.close()
    assert engine.closed == 0
    with pytest.raises(NotReady, match="before the request's turn"):
        await tasks[1]
    engine.open.set()
    await tasks[0]


async def load(folder, engine, **changes):
    described = replace(PACKAGE, **changes)
    return await Replica.load(folder, "sha256:1", engine_factory=lambda *_: engine, package=described)


async def test_warm_up_measures(tmp_path):
    warmup = write_warmup(tmp_path, input_x=INPUT["x"], output_y=INPUT["x"] * 2)
    replica = await load(tmp_path, Gate(), warmup=(warmup,))
    stats = replica.stats()
    assert stats.service_ms_p50 > 0 and stats.inferences_per_second > 0
    before = stats.service_ms_p95
    replica.served(before + 1000)
    assert replica.stats().service_ms_p95 > before
    await replica.close()


async def test_one_slow_call_of_the_warm_up_does_not_speak_for_the_node(tmp_path):
    now = 0.0

    class Hiccup(Gate):
        def infer(self, inputs):
            nonlocal now
            found = super().infer(inputs)
            now += 0.5 if self.calls == 3 else 0.01
            return found

    warmup = write_warmup(tmp_path, input_x=INPUT["x"], output_y=INPUT["x"] * 2)
    described = replace(PACKAGE, warmup=(warmup,))
    replica = await Replica.load(
        tmp_path, "sha256:1", engine_factory=lambda *_: Hiccup(), package=described, clock=lambda: now
    )
    stats = replica.stats()
    assert (stats.service_ms_p50, stats.service_ms_p95) == pytest.approx((10, 10))
    assert stats.inferences_per_second == pytest.approx(100)
    await replica.close()


async def test_p4_a_version_waits_for_its_sequences_to_end():
    sequence = Sequence(state=(), idle_s=60)
    replica = replica_of(Gate(), described=replace(PACKAGE, sequence=sequence))
    await replica.sequences_over()
    replica.holds.take()
    with replica.holds.during():
        waiting = asyncio.create_task(replica.sequences_over())
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    replica.holds.give_back()
    await asyncio.wait_for(waiting, 5)
    await replica.close()


@pytest.mark.parametrize(("idle_s", "sequences_s"), [(0.05, 600.0), (600.0, 0.05)])
async def test_p4_silent_and_endless_sequences_are_not_waited_for_without_end(idle_s, sequences_s):
    described = replace(PACKAGE, sequence=Sequence(state=(), idle_s=idle_s))
    replica = replica_of(Gate(), described=described, sequences_s=sequences_s)
    replica.holds.take()
    await asyncio.wait_for(replica.sequences_over(), 10)
    await replica.close()


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ([2.0, 4.5], "output 'y' differs from what is expected by up to 0.5"),
        ([2.0, 4.0, 6.0], r"output 'y' has shape \[2\], expected \[3\]"),
        ([2.0, np.nan], "output 'y' differs"),
    ],
)
async def test_a_wrong_warm_up_never_serves(tmp_path, expected, said):
    warmup = write_warmup(tmp_path, input_x=INPUT["x"], output_y=np.array(expected, np.float32))
    engine = Gate()
    with pytest.raises(WarmupFailed, match=said):
        await load(tmp_path, engine, warmup=(warmup,))
    assert engine.closed == 1


async def test_an_answer_that_is_not_a_number(tmp_path):
    class Nan(Gate):
        def infer(self, inputs):
            return {"y": np.array([2, np.nan], np.float32)}

    warmup = write_warmup(tmp_path, input_x=INPUT["x"], output_y=np.array([2, np.nan], np.float32))
    with pytest.raises(WarmupFailed, match="1 of 2 values are NaN"):
        await load(tmp_path, Nan(), warmup=(warmup,))


async def test_other_wrong_warm_ups(tmp_path):
    broken = write_warmup(tmp_path, "nan.npz", input_x=np.array([np.nan], np.float32), output_y=INPUT["x"])
    other = write_warmup(tmp_path, "other.npz", input_x=INPUT["x"], output_z=INPUT["x"])
    empty = write_warmup(tmp_path, "empty.npz", input_x=INPUT["x"])
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "nothing.npz").write_bytes(b"")
    packed = tmp_path / "packed.npz"
    np.savez_compressed(packed, **{"input.x": np.zeros(999, np.float32)})
    spoilt = bytearray(packed.read_bytes())
    # After the name and numpy's extra field in the archive's first header: the packed bytes.
    start = spoilt.index(b"input.x.npy") + 31
    spoilt[start : start + 20] = b"\xff" * 20
    packed.write_bytes(spoilt)
    for warmup, error, said in (
        (broken, WarmupFailed, "nan.npz: not a number"),
        (other, WarmupFailed, "output 'z' is expected, the model has"),
        (empty, PackageError, "proves nothing"),
        (Warmup(file="text.npz"), PackageError, "text.npz is not an .npz"),
        (Warmup(file="nothing.npz"), PackageError, "nothing.npz is not an .npz"),
        (Warmup(file="packed.npz"), PackageError, "packed.npz is not an .npz"),
        (Warmup(file="absent.npz"), PackageError, "absent.npz is not an .npz"),
    ):
        with pytest.raises(error, match=said):
            await load(tmp_path, Gate(), warmup=(warmup,))


def test_config():
    with pytest.raises(ConfigError):
        ReplicaConfig(queue=-1)


async def table_of(*names):
    replicas = [
        Replica(replace(PACKAGE, name=name, version=version), f"sha256:{name}{version}", Gate(), config=ReplicaConfig())
        for name, version in names
    ]
    return ReplicaTable(), replicas


async def test_table_swaps():
    table, (old, new) = await table_of(("reader", "1"), ("reader", "2"))
    assert table.put(old) is None
    assert table.put(new) is old
    assert table.get("reader") is new and table.get("reader", "2") is new
    assert table.serving(new) and not table.serving(old)
    assert table.get("reader", "1") is old and table.by_digest(old.digest) is old
    assert table.remove(old.digest) is old
    assert table.remove(old.digest) is None
    assert table.by_digest(old.digest) is None and len(table) == 1
    assert table.get("reader") is new
    with pytest.raises(NotFound, match="model 'reader' has no version '1' on this node; it has '2'"):
        table.get("reader", "1")


async def test_table_names_what_it_has():
    table, (a, b) = await table_of(("reader", "1"), ("voice", "1"))
    with pytest.raises(NotFound, match="no model 'reader' on this node; it has none yet"):
        table.get("reader")
    table.put(a)
    table.put(b)
    with pytest.raises(NotFound, match="no model 'faces' on this node; it has 'reader', 'voice'"):
        table.get("faces")


async def test_table_knows_what_is_to_come():
    table, (replica,) = await table_of(("reader", "1"))
    table.expect("reader", "loading")
    with pytest.raises(NotReady, match="'reader' is loading on this node"):
        table.get("reader")
    table.put(replica)
    assert table.get("reader") is replica
    table.remove(replica.digest)
    table.forget("reader")
    with pytest.raises(NotFound):
        table.get("reader")
