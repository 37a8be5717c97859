"""What a replica counts about its answers, and what Triton's statistics and configuration make of it."""

from __future__ import annotations

import pytest
from nearmesh_agent.serving import describe
from nearmesh_agent.serving.queue import Answer
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.tally import MAX_RESPONSES, TIME_BOUNDS_MS, Buckets, Tally
from tritonclient.grpc import model_config_pb2 as config_pb2

from nearmesh.package import Batching, Sequence, State, Step, TensorSpec
from tests.gated_engine import Gate
from tests.tiny_models import package, spec

PLAIN = package("doubler", [spec("x", "FP32", -1, 4)], [spec("y", "FP32", -1, 4)], batching=Batching(max_batch=8))


def count(tally, *, rows, batch_rows, first, compute_ms=8.0):
    answer = Answer({}, 2.0, compute_ms, batch_rows, first)
    tally.answered(answer, rows=rows, decode_ms=0.5, encode_ms=0.25, now_ms=1_700_000_000_000)


def shared_calls():
    """Three requests: two share a call of 5 rows, one has a call of 1 row."""
    tally = Tally()
    count(tally, rows=2, batch_rows=5, first=True)
    count(tally, rows=3, batch_rows=5, first=False)
    count(tally, rows=1, batch_rows=1, first=True, compute_ms=3.0)
    return tally


def replica_of(described=PLAIN, engine=None):
    return Replica(described, "sha256:1", make=lambda: engine or Gate())


def pair(duration):
    return duration.count, duration.ns


def config_of(described):
    return describe.configuration(replica_of(described)).config


@pytest.mark.parametrize(
    ("value", "at"), [(0.0, 0), (0.1, 0), (0.11, 1), (10000, len(TIME_BOUNDS_MS) - 1), (10001, len(TIME_BOUNDS_MS))]
)
def test_a_bucket_holds_values_up_to_its_bound(value, at):
    buckets = Buckets(TIME_BOUNDS_MS)
    buckets.add(value)
    assert [index for index, found in enumerate(buckets.counts) if found] == [at]
    assert (buckets.count, buckets.total) == (1, value)


def test_requests_that_share_a_call_count_its_time_each_and_the_call_once():
    tally = shared_calls()
    assert (tally.inferences, tally.executions) == (6, 2)
    assert pair(tally.queue) == (3, 6_000_000)
    assert pair(tally.decode) == (3, 1_500_000)
    assert pair(tally.compute) == (3, 19_000_000)
    assert pair(tally.encode) == (3, 750_000)
    assert pair(tally.success) == (3, 27_250_000)
    assert (tally.compute_ms.count, tally.compute_ms.total) == (2, 11.0)
    assert (tally.batch_rows.count, tally.batch_rows.total) == (2, 6)


def test_failures_are_all_that_did_not_end_well():
    tally = shared_calls()
    tally.failed("OVERLOADED", 0.5)
    tally.failed("OVERLOADED", 0.5)
    tally.failed("CANCELLED", 3.0)
    assert tally.outcomes == {"OK": 3, "OVERLOADED": 2, "CANCELLED": 1}
    assert pair(tally.fail) == (3, 4_000_000)
    assert tally.success.count == 3


async def test_statistics_as_triton_has_them():
    replica = replica_of()
    replica.tally = shared_calls()
    replica.tally.failed("DEADLINE_EXCEEDED", 4.0)
    found = describe.statistics(replica)
    assert (found.name, found.version, found.last_inference) == ("doubler", "1", 1_700_000_000_000)
    assert (found.inference_count, found.execution_count) == (6, 2)
    stats = found.inference_stats
    assert (pair(stats.success), pair(stats.fail)) == ((3, 27_250_000), (1, 4_000_000))
    assert pair(stats.compute_infer) == (3, 19_000_000)
    # Present and zero: clients tell "no cache" from "an old server".
    assert stats.HasField("cache_hit") and stats.HasField("cache_miss")
    assert pair(stats.cache_hit) == pair(stats.cache_miss) == (0, 0)
    batches = {
        batch.batch_size: [pair(batch.compute_input), pair(batch.compute_infer), pair(batch.compute_output)]
        for batch in found.batch_stats
    }
    assert batches == {
        1: [(1, 500_000), (1, 3_000_000), (1, 250_000)],
        5: [(1, 1_000_000), (1, 8_000_000), (1, 500_000)],
    }


async def test_statistics_say_what_the_version_takes_in_memory():
    described = package("m", list(PLAIN.inputs), list(PLAIN.outputs), memory_bytes=5_000_000)
    replica = replica_of(described)
    assert not describe.statistics(replica).memory_usage
    await replica.activate()
    (usage,) = describe.statistics(replica).memory_usage
    assert (usage.type, usage.id, usage.byte_size) == ("CPU", 0, 5_000_000)
    await replica.deactivate()
    assert not describe.statistics(replica).memory_usage


async def test_statistics_tell_the_answers_of_a_stream_apart():
    replica = replica_of()
    for answers in (3, 1):
        for number in range(answers):
            replica.tally.responded(number, compute_ms=2.0, encode_ms=0.5)
        replica.tally.streamed(9.0, 1)
    found = describe.statistics(replica)
    assert {key: pair(each.success) for key, each in found.response_stats.items()} == {
        "0": (2, 5_000_000),
        "1": (1, 2_500_000),
        "2": (1, 2_500_000),
    }
    assert pair(found.response_stats["0"].compute_infer) == (2, 4_000_000)
    assert pair(found.response_stats["0"].compute_output) == (2, 1_000_000)
    assert (found.inference_count, found.inference_stats.success.count) == (2, 2)


def test_a_long_stream_does_not_make_long_statistics():
    tally = Tally()
    for number in range(MAX_RESPONSES + 10):
        tally.responded(number, compute_ms=1.0, encode_ms=0.0)
    assert len(tally.responses) == MAX_RESPONSES


def test_the_configuration_tells_how_requests_are_batched():
    batching = Batching(max_batch=8, preferred_batch_sizes=(4, 8), max_delay_ms=2.5)
    config = config_of(package("m", list(PLAIN.inputs), list(PLAIN.outputs), batching=batching, queue=32))
    assert config.max_batch_size == 8
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    assert (config.dynamic_batching.priority_levels, config.dynamic_batching.default_priority_level) == (9, 2)
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.allow_timeout_override) == (32, True)
    assert policy.timeout_action == config_pb2.ModelQueuePolicy.REJECT
    assert config.parameters["queue"].string_value == "32"
    assert not config.model_transaction_policy.decoupled


def test_the_configuration_of_a_model_that_serves_one_by_one():
    config = config_of(package("m", [spec("x", "FP32", -1, 4)], [spec("y", "FP32", -1, 4)]))
    assert (config.max_batch_size, config.WhichOneof("scheduling_choice")) == (0, None)
    assert list(config.input[0].dims) == [-1, 4]
    assert not config.parameters


def test_the_configuration_leaves_out_the_batch_axis_wherever_it_is():
    inputs = [
        TensorSpec(name="first", dtype="FP32", shape=(-1, 4)),
        TensorSpec(name="second", dtype="FP32", shape=(2, -1, 128), batch_axis=1),
        TensorSpec(name="rate", dtype="INT64", shape=(1,), batch_axis=-1),
    ]
    config = config_of(package("m", inputs, [spec("y", "FP32", -1, 1)], batching=Batching(max_batch=4)))
    assert [list(one.dims) for one in config.input] == [[4], [2, 128], [1]]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "batch_axis.second": "1",
        "batch_axis.rate": "-1",
    }


def test_the_configuration_of_sequences_that_share_calls():
    described = package(
        "m",
        [spec("x", "FP32", -1, 4), spec("before", "FP32", -1, 4)],
        [spec("y", "FP32", -1, 4), spec("after", "FP32", -1, 4)],
        batching=Batching(max_batch=4, max_delay_ms=1.0),
        sequence=Sequence(state=(State(input="before", output="after", shape=(1, 4)),), idle_s=30.0, most=16),
    )
    config = config_of(described)
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    assert config.sequence_batching.WhichOneof("strategy_choice") == "oldest"
    assert config.sequence_batching.oldest.max_candidate_sequences == 16
    assert config.sequence_batching.oldest.max_queue_delay_microseconds == 1000
    assert config.sequence_batching.max_sequence_idle_microseconds == 30_000_000
    assert [one.name for one in config.input] == ["x"]


def test_the_configuration_of_a_pipeline_with_several_answers():
    steps = (Step(name="cut", python="steps.py:cut"), Step(name="tell", python="steps.py:tell"))
    config = config_of(package("m", list(PLAIN.inputs), list(PLAIN.outputs), variants=(), steps=steps, decoupled=True))
    assert config.model_transaction_policy.decoupled
    assert config.parameters["steps"].string_value == "cut, tell"


async def test_the_configuration_tells_where_instances_run():
    engine = Gate(instances=3)
    engine.providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    replica = replica_of(engine=engine)
    await replica.activate()
    (group,) = describe.configuration(replica).config.instance_group
    assert (group.count, group.kind) == (3, config_pb2.ModelInstanceGroup.KIND_GPU)
    await replica.close()
