"""The load that a node reports to gRPC clients."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from nearmesh_agent.serving.orca import EVERY_S, TRAILER, Load, OrcaReporter, encode
from nearmesh_agent.serving.queue import Answer
from nearmesh_agent.serving.replica import Replica
from xds.data.orca.v3.orca_load_report_pb2 import OrcaLoadReport

from tests.gated_engine import Gate
from tests.tiny_models import package, spec


class Machine:
    """Three clocks that the test moves on."""

    def __init__(self):
        self.now = 100.0
        self.process = self.thread = 0.0

    def pass_(self, seconds, *, process=0.0, thread=0.0):
        self.now += seconds
        self.process += process
        self.thread += thread

    def reporter(self, *replicas):
        return OrcaReporter(
            replicas,
            clock=lambda: self.now,
            process_clock=lambda: self.process,
            thread_clock=lambda: self.thread,
        )


async def resident(*, instances=1, name="doubler"):
    described = package(name, [spec("x", "FP32", -1)], [spec("y", "FP32", -1)])
    replica = Replica(described, f"sha256:{name}", make=lambda: Gate(instances=instances))
    await replica.activate()
    return replica


def serve(replica, calls, *, compute_ms, queue_ms=0.0, requests_of_call=1):
    for _ in range(calls):
        for number in range(requests_of_call):
            answer = Answer({}, queue_ms, compute_ms, requests_of_call, number == 0)
            replica.tally.answered(answer, rows=1, decode_ms=0.0, encode_ms=0.0, now_ms=1)


def weight(load, penalty=1.0):
    """As gRFC A58 has it."""
    return load.requests_per_s / (load.utilization + load.errors_per_s / load.requests_per_s * penalty)


def test_the_bytes_are_the_message():
    load = Load(cpu=0.5, utilization=1.75, requests_per_s=123.25, errors_per_s=2.0, queue=300)
    report = OrcaLoadReport.FromString(encode(load))
    assert report == OrcaLoadReport(
        cpu_utilization=0.5,
        application_utilization=1.75,
        rps_fractional=123.25,
        eps=2.0,
        named_metrics={"queue": 300.0},
    )


def test_no_figure_is_below_zero():
    report = OrcaLoadReport.FromString(encode(Load(cpu=-1e-9, utilization=-0.1)))
    assert (report.cpu_utilization, report.application_utilization) == (0, 0)


async def test_utilization_is_the_share_of_the_instances_that_compute():
    machine, replica = Machine(), await resident(instances=2)
    reporter = machine.reporter(replica)
    serve(replica, 30, compute_ms=20.0)
    machine.pass_(1.0)
    load = reporter.load(machine.now)
    assert (load.utilization, load.requests_per_s) == pytest.approx((0.3, 30))
    await replica.close()


async def test_requests_that_wait_make_it_more_than_full():
    """Ten requests a second, each computed for 0.1 s after 0.5 s in the queue: five wait all the time."""
    machine, replica = Machine(), await resident()
    reporter = machine.reporter(replica)
    serve(replica, 10, compute_ms=100.0, queue_ms=500.0)
    machine.pass_(1.0)
    assert reporter.load(machine.now).utilization == pytest.approx(6.0)
    await replica.close()


async def test_requests_that_will_share_a_call_wait_as_one():
    machine, replica = Machine(), await resident()
    reporter = machine.reporter(replica)
    serve(replica, 10, compute_ms=100.0, queue_ms=100.0, requests_of_call=8)
    machine.pass_(1.0)
    load = reporter.load(machine.now)
    assert (load.utilization, load.requests_per_s) == pytest.approx((2.0, 80))
    await replica.close()


async def test_models_share_the_node():
    machine = Machine()
    one, other = await resident(name="one"), await resident(name="other", instances=4)
    reporter = machine.reporter(one, other)
    serve(one, 1, compute_ms=500.0)
    serve(other, 2, compute_ms=1000.0)
    machine.pass_(1.0)
    load = reporter.load(machine.now)
    assert (load.utilization, load.requests_per_s) == pytest.approx((1.0, 3))
    await one.close()
    await other.close()


async def test_a_busy_event_loop_is_load_too():
    machine, replica = Machine(), await resident()
    reporter = machine.reporter(replica)
    serve(replica, 100, compute_ms=0.1)
    machine.pass_(1.0, process=1.0, thread=0.9)
    load = reporter.load(machine.now)
    assert load.utilization == pytest.approx(0.9)
    assert 0 < load.cpu <= 1.0
    await replica.close()


async def test_errors_of_the_node_count_and_those_of_callers_do_not():
    machine, replica = Machine(), await resident()
    reporter = machine.reporter(replica)
    serve(replica, 10, compute_ms=50.0)
    for outcome in ("OVERLOADED", "ENGINE_FAILURE", "INTERNAL", "INVALID_INPUT", "CANCELLED"):
        replica.tally.failed(outcome, 1.0)
    machine.pass_(1.0)
    load = reporter.load(machine.now)
    assert (load.requests_per_s, load.errors_per_s) == pytest.approx((10, 3))
    await replica.close()


async def test_a_node_that_refuses_most_weighs_less_than_one_that_serves():
    machine = Machine()
    refusing, serving = await resident(name="refusing"), await resident(name="serving")
    reporters = machine.reporter(refusing), machine.reporter(serving)
    for replica in (refusing, serving):
        serve(replica, 100, compute_ms=9.0)
    for _ in range(900):
        refusing.tally.failed("OVERLOADED", 0.1)
    machine.pass_(1.0)
    loads = [reporter.load(machine.now) for reporter in reporters]
    assert weight(loads[0]) < weight(loads[1]) / 5
    await refusing.close()
    await serving.close()


async def test_weights_follow_what_a_node_can_do_not_how_much_it_gets():
    """Twice as fast, twice the weight, though both are asked the same; after a pause it is still so."""
    machine = Machine()
    slow, fast = await resident(name="slow"), await resident(name="fast")
    reporters = machine.reporter(slow), machine.reporter(fast)
    for pause_s, requests in ((1.0, 10), (600.0, 1), (0.2, 5)):
        serve(slow, requests, compute_ms=40.0)
        serve(fast, requests, compute_ms=20.0)
        machine.pass_(pause_s)
        weights = [weight(reporter.load(machine.now)) for reporter in reporters]
        assert weights == pytest.approx([25, 50])
    await slow.close()
    await fast.close()


async def test_averages_forget():
    machine, replica = Machine(), await resident()
    reporter = machine.reporter(replica)
    serve(replica, 10, compute_ms=100.0)
    machine.pass_(1.0)
    assert reporter.load(machine.now).utilization == pytest.approx(1.0)
    machine.pass_(2.0)
    assert reporter.load(machine.now).utilization == pytest.approx(0.3679, abs=1e-4)
    await replica.close()


async def test_a_report_serves_all_answers_of_a_tenth_of_a_second():
    machine, replica = Machine(), await resident()
    reporter = machine.reporter(replica)
    machine.pass_(1.0)
    serve(replica, 1, compute_ms=100.0)
    first = reporter.metadata()
    serve(replica, 9, compute_ms=100.0)
    machine.pass_(EVERY_S * 0.9)
    assert reporter.metadata() is first
    machine.pass_(EVERY_S * 0.2)
    ((key, written),) = reporter.metadata()
    assert key == TRAILER
    assert OrcaLoadReport.FromString(written).rps_fractional > OrcaLoadReport.FromString(first[0][1]).rps_fractional
    await replica.close()


async def test_the_queue_is_that_of_the_moment():
    described = package("gated", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)])
    engine = Gate(is_open=False)
    replica = Replica(described, "sha256:1", make=lambda: engine)
    await replica.activate()
    machine = Machine()
    reporter = machine.reporter(replica)
    asked = [asyncio.create_task(replica.infer({"x": np.ones(1, np.float32)})) for _ in range(3)]
    await engine.entered()
    machine.pass_(0.1)
    ((_, written),) = reporter.metadata()
    assert OrcaLoadReport.FromString(written).named_metrics["queue"] == 2
    engine.open.set()
    await asyncio.gather(*asked)
    await replica.close()


async def test_what_a_version_on_trial_fails_is_no_error_of_the_node():
    machine, replica = Machine(), await resident()
    reporter = machine.reporter(replica)
    replica.on_trial = True
    serve(replica, 10, compute_ms=1.0)
    replica.tally.failed("ENGINE_FAILURE", 1.0)
    machine.pass_(1.0)
    load = reporter.load(machine.now)
    assert (load.requests_per_s, load.errors_per_s) == (10, 0)
    replica.on_trial = False
    replica.tally.failed("ENGINE_FAILURE", 1.0)
    machine.pass_(1.0)
    assert reporter.load(machine.now).errors_per_s > 0
    await replica.close()
