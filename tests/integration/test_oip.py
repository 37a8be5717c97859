"""The Open Inference Protocol as stock tritonclient speaks it, against a real server in this process."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
import tritonclient.grpc as sync_triton
import tritonclient.grpc.aio as triton
from nearmesh_agent.serving.replica import Replica
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from nearmesh import __version__, tensors
from nearmesh.errors import DeadlineExceeded
from nearmesh.lineage import LINEAGE_FILE
from nearmesh.package import Step
from nearmesh.quantiles import LEAST_SAMPLES
from tests import tiny_models
from tests.inference_server import load, serving
from tests.integration.oip_client import LEFT, RIGHT, client_of, given, message, stub_of
from tests.tiny_models import SAMPLES
from tests.unit.test_lineage import LINEAGE


@pytest.mark.parametrize("datatype", SAMPLES)
async def test_every_dtype(tmp_path, datatype):
    package = tiny_models.identity(tmp_path, datatype)
    async with serving([await load(tmp_path, package)]) as running, client_of(running) as client:
        result = await client.infer(package.name, given(x=SAMPLES[datatype]))
        assert result.as_numpy("y").tolist() == SAMPLES[datatype].tolist()
        assert result.get_response().raw_output_contents

        metadata = await client.get_model_metadata(package.name)
        assert (metadata.inputs[0].datatype, list(metadata.inputs[0].shape)) == (datatype, [-1, 3])


async def test_bytes_are_counted_of_what_was_answered(tmp_path):
    replica = await load(tmp_path, tiny_models.identity(tmp_path, "FP32"))
    small, large = (tensors.encode_request(replica.name, {"x": np.ones((rows, 3), np.float32)}) for rows in (1, 50_000))
    wrong = service_pb2.ModelInferRequest(model_name=replica.name)
    async with serving([replica]) as running, stub_of(running) as stub:
        answers = [await stub.ModelInfer(small), await stub.ModelInfer(large)]
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ModelInfer(wrong)
        stream = stub.ModelStreamInfer(iter([small]))
        answers += [part.infer_response async for part in stream]
    assert replica.tally.bytes_in == 2 * small.ByteSize() + large.ByteSize()
    assert replica.tally.bytes_out == sum(answer.ByteSize() for answer in answers) > 600_000


async def test_typed_contents(stub):
    request = service_pb2.ModelInferRequest(model_name="adder", id="42")
    contents = service_pb2.InferTensorContents(fp32_contents=[1, 2, 3, 4])
    request.inputs.add(name="left", datatype="FP32", shape=[1, 4], contents=contents)
    response = await stub.ModelInfer(request)
    assert tensors.decode_response(response)["total"].tolist() == [[1, 2, 3, 4]]
    assert (response.model_name, response.model_version, response.id) == ("adder", "1", "42")


async def test_the_sync_client(running):
    def use():
        with sync_triton.InferenceServerClient(running.address) as client:
            assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("adder")
            return client.infer("adder", given(sync_triton, left=LEFT, right=RIGHT), request_id="a").as_numpy("total")

    assert (await asyncio.to_thread(use)).tolist() == (LEFT + RIGHT).tolist()


async def test_requested_outputs_and_version(client):
    outputs = [triton.InferRequestedOutput("less")]
    result = await client.infer("adder", given(left=LEFT, right=RIGHT), model_version="1", outputs=outputs)
    assert [output.name for output in result.get_response().outputs] == ["less"]
    assert result.as_numpy("less").tolist() == (LEFT - RIGHT).tolist()


async def test_description(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("adder")
    assert not await client.is_model_ready("adder", "9")
    assert not await client.is_model_ready("faces")
    server = await client.get_server_metadata()
    assert (server.name, server.version) == ("nearmesh", __version__)
    index = await client.get_model_repository_index()
    assert {(m.name, m.version, m.state) for m in index.models} == {
        ("adder", "1", "READY"),
        ("accumulator", "1", "READY"),
    }


async def test_model_config(client):
    adder = (await client.get_model_config("adder")).config
    assert (adder.platform, adder.max_batch_size) == ("onnxruntime_onnx", 8)
    assert [(i.name, list(i.dims), i.data_type, i.optional) for i in adder.input] == [
        ("left", [4], 11, False),
        ("right", [4], 11, True),
    ]
    accumulator = (await client.get_model_config("accumulator")).config
    assert [i.name for i in accumulator.input] == ["x"]
    assert [o.name for o in accumulator.output] == ["sum"]
    assert [(s.input_name, s.output_name) for s in accumulator.sequence_batching.state] == [("before", "after")]
    assert accumulator.sequence_batching.max_sequence_idle_microseconds == 60_000_000


async def test_statistics(client):
    for _ in range(3):
        await client.infer("adder", given(left=LEFT))
    with pytest.raises(InferenceServerException):
        await client.infer("adder", given(left=LEFT[:, :2]))
    (found,) = (await client.get_inference_statistics("adder")).model_stats
    assert (found.inference_count, found.execution_count) == (6, 3)
    assert found.inference_stats.success.count == 3 and found.inference_stats.fail.count == 1
    assert found.inference_stats.compute_infer.ns > 0 and found.last_inference > 0
    assert [(batch.batch_size, batch.compute_infer.count) for batch in found.batch_stats] == [(2, 3)]
    assert [(usage.type, usage.byte_size > 0) for usage in found.memory_usage] == [("CPU", True)]
    assert len((await client.get_inference_statistics()).model_stats) == 2


class Counting:
    """Gives 0, 1 ... up to `x` - 1."""

    name, variant, providers, instances = "counting", "fp32", ("CPUExecutionProvider",), 1

    def stream(self, inputs):
        return ({"y": np.array([number])} for number in range(inputs["x"][0]))

    def close(self):
        pass


async def test_statistics_tell_the_answers_of_a_stream_apart():
    described = tiny_models.package(
        "counting",
        [tiny_models.spec("x", "INT64", 1)],
        [tiny_models.spec("y", "INT64", 1)],
        decoupled=True,
        variants=(),
        steps=(Step(name="count", python="count.py:count"),),
    )
    replica = Replica(described, "sha256:1", make=Counting)
    await replica.activate()
    async with serving([replica]) as running, stub_of(running) as stub, client_of(running) as client:
        for number in (3, 1):
            request = tensors.encode_request("counting", {"x": np.array([number])})
            assert len([answer async for answer in stub.ModelStreamInfer(iter([request]))]) == number
        (found,) = (await client.get_inference_statistics("counting")).model_stats
        assert {key: answers.success.count for key, answers in found.response_stats.items()} == {"0": 2, "1": 1, "2": 1}
        assert (found.inference_stats.success.count, found.execution_count) == (2, 2)
        assert (await client.get_model_config("counting")).config.model_transaction_policy.decoupled


async def test_statistics_of_a_model_are_of_all_its_versions(tmp_path):
    versions = [await load(tmp_path, tiny_models.adder(tmp_path, version=version)) for version in ("1", "2")]
    async with serving(versions) as running, client_of(running) as client:
        await client.infer("adder", given(left=LEFT), model_version="1")
        found = (await client.get_inference_statistics("adder")).model_stats
        assert {one.version: one.inference_count for one in found} == {"1": 2, "2": 0}
        (found,) = (await client.get_inference_statistics("adder", "2")).model_stats
        assert found.version == "2"


async def test_a_receipt_names_the_run_that_made_the_version(tmp_path):
    described = tiny_models.adder(tmp_path)
    (tmp_path / LINEAGE_FILE).write_bytes(LINEAGE.to_bytes())
    async with serving([await load(tmp_path, described)]) as running, client_of(running) as client:
        result = await client.infer("adder", given(left=LEFT), parameters={"nearmesh_receipt": True})
        assert result.get_response().parameters["nearmesh_run"].string_param == LINEAGE.run


async def test_receipt(client):
    result = await client.infer("adder", given(left=LEFT), parameters={"nearmesh_receipt": True, "unknown": "ignored"})
    receipt = result.get_response().parameters
    assert receipt["nearmesh_node"].string_param == "node-1"
    assert receipt["nearmesh_site"].string_param == "site-1"
    assert receipt["nearmesh_region"].string_param == "europe-west1"
    assert receipt["nearmesh_variant"].string_param == "fp32"
    assert receipt["nearmesh_digest"].string_param.startswith("sha256:")
    compute_ms, service_ms = receipt["nearmesh_compute_ms"].double_param, receipt["nearmesh_service_ms"].double_param
    assert 0 < compute_ms < service_ms
    assert receipt["nearmesh_queue_ms"].double_param >= 0
    assert receipt["nearmesh_attempt"].int64_param == 1
    assert "nearmesh_run" not in receipt
    assert not (await client.infer("adder", given(left=LEFT))).get_response().parameters


@pytest.mark.parametrize(("told", "attempt"), [("3", 3), ("0", 1), ("many", 1)])
async def test_a_receipt_counts_the_attempts_of_a_gateway(client, told, attempt):
    headers = {"x-envoy-attempt-count": told}
    result = await client.infer("adder", given(left=LEFT), parameters={"nearmesh_receipt": True}, headers=headers)
    assert result.get_response().parameters["nearmesh_attempt"].int64_param == attempt


async def test_p4_a_swap_fails_nothing(tmp_path):
    """The old version answers what it had; requests without a version go to the new one."""
    old = await load(tmp_path, tiny_models.adder(tmp_path))
    new = await load(tmp_path, tiny_models.adder(tmp_path, version="2"))
    async with serving([old]) as running, client_of(running) as client:
        versions = set()

        async def ask():
            for _ in range(50):
                result = await client.infer("adder", given(left=LEFT, right=RIGHT))
                versions.add(result.get_response().model_version)
                assert result.as_numpy("total").tolist() == (LEFT + RIGHT).tolist()

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask())
            await client.infer("adder", given(left=LEFT))
            replaced = running.table.put(new)
            running.table.remove(replaced.digest)
            await replaced.close()
        assert versions == {"1", "2"} or versions == {"2"}
        assert (await client.get_model_metadata("adder")).versions == ["2"]
    await new.close()


async def test_metrics(running, client):
    await client.infer("adder", given(left=LEFT))
    with pytest.raises(InferenceServerException):
        await client.infer("faces", given(left=LEFT))
    running.servicer.draining = True
    with pytest.raises(InferenceServerException):
        await client.infer("adder", given(left=LEFT))
    value = running.metrics.registry.get_sample_value
    adder = {"model": "adder", "version": "1"}
    assert value("nearmesh_requests_total", {**adder, "status": "OK"}) == 1
    assert value("nearmesh_requests_total", {"model": "unknown", "version": "", "status": "NOT_FOUND"}) == 1
    assert value("nearmesh_rejected_total", {**adder, "reason": "DRAINING"}) == 1
    assert value("nearmesh_inferences_total", adder) == len(LEFT)
    assert value("nearmesh_service_seconds_count", adder) == value("nearmesh_queue_seconds_count", adder) == 1
    assert value("nearmesh_compute_seconds_sum", adder) > 0
    assert value("nearmesh_batch_rows_sum", adder) == len(LEFT)
    assert (value("nearmesh_loads_total", adder), value("nearmesh_evictions_total", adder)) == (1, 0)
    assert (value("nearmesh_resident", adder), value("nearmesh_ready", adder)) == (1, 1)
    assert value("nearmesh_memory_bytes", adder) > 0
    assert value("nearmesh_in_flight", adder) == value("nearmesh_waiting", adder) == 0
    assert value("process_resident_memory_bytes") > 0


async def test_a_bug_is_not_counted_as_an_answer(running, client, monkeypatch):
    monkeypatch.setattr("nearmesh_agent.serving.wire.respond", lambda *_: 1 // 0)
    with pytest.raises(InferenceServerException):
        await client.infer("adder", given(left=LEFT))
    value = running.metrics.registry.get_sample_value
    adder = {"model": "adder", "version": "1"}
    assert value("nearmesh_requests_total", {**adder, "status": "INTERNAL"}) == 1
    assert value("nearmesh_requests_total", {**adder, "status": "OK"}) is None


async def test_a_deadline_that_passed_on_the_node_shows_in_what_the_node_says_of_itself(running, stub, monkeypatch):
    replica = running.table.get("adder")

    async def late(*args, **kwargs):
        await asyncio.sleep(0.05)
        raise DeadlineExceeded("too late")

    await stub.ModelInfer(message())
    monkeypatch.setattr(replica, "infer", late)
    # One late call among few would be a stray.
    for _ in range(LEAST_SAMPLES):
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ModelInfer(message())
    assert replica.stats().service.p95_ms >= 49


async def test_a_node_without_a_model_is_live_and_not_ready():
    async with serving([]) as running, client_of(running) as client:
        assert await client.is_server_live()
        assert not await client.is_server_ready()
