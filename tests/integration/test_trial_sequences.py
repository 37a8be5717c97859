"""Trials of models with a memory, and of those that give several answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest
from nearmesh_agent.serving.replica import Replica
from tritonclient.grpc import service_pb2

from nearmesh import tensors
from nearmesh.errors import EngineFailure
from nearmesh.package import Sequence, State, Step
from nearmesh.v1 import node_pb2 as pb
from tests import tiny_models
from tests.gated_engine import Gate
from tests.inference_server import Running, serving
from tests.integration.oip_client import stub_of

SUMS = tiny_models.package(
    "sums",
    [tiny_models.spec("x", "FP32", 1), tiny_models.spec("before", "FP32", 1)],
    [tiny_models.spec("sum", "FP32", 1), tiny_models.spec("after", "FP32", 1)],
    sequence=Sequence(state=(State(input="before", output="after", shape=(1,)),)),
)
LETTERS = tiny_models.package(
    "letters",
    [tiny_models.spec("x", "FP32", 1)],
    [tiny_models.spec("y", "FP32", 1)],
    variants=(),
    steps=(Step(name="spell", python="steps.py:spell"),),
    decoupled=True,
)


class Sums(Gate):
    """Adds up, in steps of `factor`."""

    def __init__(self, factor: float, *, broken: bool = False) -> None:
        super().__init__()
        self.factor, self.broken = factor, broken

    def compute(self, inputs):
        if self.broken:
            raise EngineFailure("device lost")
        total = inputs["before"] + self.factor * inputs["x"]
        return {"sum": total, "after": total}


class Letters(Gate):
    """Gives `number` three times; a broken one fails before answer number `fails_at`."""

    def __init__(self, number: float, *, fails_at: int = 9) -> None:
        super().__init__()
        self.number, self.fails_at = number, fails_at

    def stream(self, inputs):
        for at in range(3):
            if at == self.fails_at:
                raise EngineFailure("device lost")
            yield {"y": np.array([self.number], np.float32)}


@asynccontextmanager
async def beside(described, standing: Gate, trial: Gate) -> AsyncIterator[Running]:
    """Both versions, each second request or sequence for the one on trial."""
    replicas = [
        Replica(replace(described, version=version), f"sha256:{version}", make=lambda engine=engine: engine)
        for version, engine in (("1", standing), ("2", trial))
    ]
    for replica in replicas:
        replica.measured.times.add(1, 0.001)
        await replica.activate()
    async with serving(replicas[:1]) as running:
        running.table.try_out(replicas[1], pb.Trial(share=0.5, mirror_share=1.0))
        yield running
        await replicas[1].close()


def step(value, number, *, start=False, end=False):
    request = tensors.encode_request("sums", {"x": np.array([value], np.float32)})
    # 0 would be no sequence.
    request.parameters["sequence_id"].int64_param = 100 + number
    request.parameters["sequence_start"].bool_param = start
    request.parameters["sequence_end"].bool_param = end
    return request


async def ask(stub, request):
    answer = await stub.ModelInfer(request, timeout=5)
    return answer.model_version, float(tensors.decode_response(answer)["sum"][0])


async def test_a_sequence_stays_with_the_version_that_it_began_with():
    async with beside(SUMS, Sums(1.0), Sums(10.0)) as running, stub_of(running) as stub:
        for number in range(4):
            assert (await ask(stub, step(1, number, start=True)))[0] == "12"[number % 2]
        for _ in range(3):
            for number in range(4):
                version, total = await ask(stub, step(1, number))
                assert version == "12"[number % 2] and total % (1, 10)[number % 2] == 0
        assert [await ask(stub, step(1, number, end=True)) for number in range(4)] == [("1", 5), ("2", 50)] * 2
        # Sequences are never asked twice.
        assert running.table.get("sums", "2").tally.compared == 0


async def test_p4_a_sequence_that_a_broken_trial_should_have_begun_begins_with_the_standing_version():
    async with beside(SUMS, Sums(1.0), Sums(10.0, broken=True)) as running, stub_of(running) as stub:
        for number in range(4):
            assert await ask(stub, step(1, number, start=True)) == ("1", 1)
        assert [await ask(stub, step(1, number)) for number in range(4)] == [("1", 2)] * 4
        trial = running.table.get("sums", "2")
        assert trial.tally.outcomes == {"ENGINE_FAILURE": 2} and len(trial.holds) == 0


async def test_p4_the_standing_version_goes_on_with_a_sequence_at_which_a_trial_breaks():
    trial = Sums(10.0)
    async with beside(SUMS, Sums(1.0), trial) as running, stub_of(running) as stub:
        await ask(stub, step(1, 0, start=True))
        assert await ask(stub, step(1, 1, start=True)) == ("2", 10)
        assert await ask(stub, step(2, 1)) == ("2", 30)
        trial.broken = True
        # As if it had been the standing version's from its start.
        assert await ask(stub, step(3, 1)) == ("1", 6)
        trial.broken = False
        assert await ask(stub, step(4, 1)) == ("1", 10)
        replicas = [running.table.get("sums", version) for version in "12"]
        assert [len(replica.holds) for replica in replicas] == [2, 0]
        assert replicas[1].tally.outcomes == {"OK": 2, "ENGINE_FAILURE": 1}
        assert await ask(stub, step(5, 1, end=True)) == ("1", 15)
        assert len(replicas[0].holds) == 1


async def test_a_sequence_of_a_trial_goes_on_without_the_standing_version():
    standing = Sums(1.0)
    async with beside(SUMS, standing, Sums(10.0)) as running, stub_of(running) as stub:
        await ask(stub, step(1, 0, start=True))
        assert await ask(stub, step(1, 1, start=True)) == ("2", 10)
        standing.broken = True
        assert await ask(stub, step(1, 1)) == ("2", 20)
        standing.broken = False
        calls = standing.calls
        # What it has missed, it cannot make up for.
        assert await ask(stub, step(1, 1)) == ("2", 30) and standing.calls == calls
        # Nobody was told, so nobody counts it.
        assert running.table.get("sums", "1").tally.outcomes == {"OK": 1}


async def test_a_sequence_stays_with_a_trial_that_becomes_the_standing_version():
    standing = Sums(1.0)
    async with beside(SUMS, standing, Sums(10.0)) as running, stub_of(running) as stub:
        await ask(stub, step(1, 0, start=True))
        assert await ask(stub, step(1, 1, start=True)) == ("2", 10)
        running.table.put(running.table.get("sums", "2"))
        calls = standing.calls
        assert await ask(stub, step(1, 1)) == ("2", 20) and standing.calls == calls
        assert await ask(stub, step(1, 0)) == ("1", 2)


async def test_p4_the_standing_version_goes_on_with_the_sequences_of_a_trial_that_is_taken_back():
    async with beside(SUMS, Sums(1.0), Sums(10.0)) as running, stub_of(running) as stub:
        await ask(stub, step(1, 0, start=True))
        assert await ask(stub, step(1, 1, start=True)) == ("2", 10)
        trial = running.table.remove("sha256:2")
        assert await ask(stub, step(2, 1)) == ("1", 3)
        assert len(trial.holds) == 0
        assert await ask(stub, step(3, 1, end=True)) == ("1", 6)


async def test_what_is_wrong_with_a_step_changes_nothing():
    async with beside(SUMS, Sums(1.0), Sums(10.0)) as running, stub_of(running) as stub:
        await ask(stub, step(1, 0, start=True))
        assert await ask(stub, step(1, 1, start=True)) == ("2", 10)
        bad = step(1, 1)
        bad.inputs[0].datatype = "INT32"
        named = step(1, 1)
        named.model_version = "1"
        for request in (bad, named):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(stub, request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await ask(stub, step(1, 1)) == ("2", 20)
        assert running.table.get("sums", "2").tally.outcomes.get("ENGINE_FAILURE") is None


async def test_whoever_carries_the_state_along_is_not_sent_to_another_version():
    async with beside(SUMS, Sums(1.0), Sums(10.0)) as running, stub_of(running) as stub:
        inputs = {name: np.array([1], np.float32) for name in ("x", "before")}
        answers = [await stub.ModelInfer(tensors.encode_request("sums", inputs), timeout=5) for _ in range(6)]
        assert {answer.model_version for answer in answers} == {"1"}
        assert running.table.get("sums", "2").tally.compared == 0


async def stream(stub):
    """The versions and values of one request's answers."""
    call = stub.ModelStreamInfer(timeout=5)
    await call.write(tensors.encode_request("letters", {"x": np.array([1], np.float32)}))
    await call.done_writing()
    found = []
    while (response := await call.read()) is not grpc.aio.EOF:
        assert isinstance(response, service_pb2.ModelStreamInferResponse)
        if response.error_message:
            found.append(response.error_message)
            continue
        answer = response.infer_response
        found.append((answer.model_version, float(tensors.decode_response(answer)["y"][0])))
    return found


async def test_a_stream_of_answers_comes_from_one_version():
    async with beside(LETTERS, Letters(1), Letters(2)) as running, stub_of(running) as stub:
        assert [await stream(stub) for _ in range(4)] == [[("1", 1)] * 3, [("2", 2)] * 3] * 2
        trial = running.table.get("letters", "2")
        assert (trial.tally.outcomes, trial.tally.compared) == ({"OK": 2}, 0)


async def test_p4_a_stream_that_a_broken_trial_does_not_begin_comes_from_the_standing_version():
    async with beside(LETTERS, Letters(1), Letters(2, fails_at=0)) as running, stub_of(running) as stub:
        assert [await stream(stub) for _ in range(4)] == [[("1", 1)] * 3] * 4
        assert running.table.get("letters", "2").tally.outcomes == {"ENGINE_FAILURE": 2}


async def test_p4_a_stream_that_a_trial_hangs_at_comes_from_the_standing_version():
    class Stuck(Letters):
        def stream(self, inputs):
            assert self.open.wait(20)
            yield from super().stream(inputs)

    trial = Stuck(2)
    trial.open.clear()
    async with beside(LETTERS, Letters(1), trial) as running, stub_of(running) as stub:
        async with asyncio.timeout(10):
            assert [await stream(stub) for _ in range(2)] == [[("1", 1)] * 3] * 2
        assert running.table.get("letters", "2").tally.outcomes == {"DEADLINE_EXCEEDED": 1}
        trial.open.set()


async def test_what_a_stream_has_begun_it_ends():
    """The answers that were given cannot be taken back: the caller hears of the failure."""
    async with beside(LETTERS, Letters(1), Letters(2, fails_at=1)) as running, stub_of(running) as stub:
        assert [await stream(stub) for _ in range(2)] == [[("1", 1)] * 3, [("2", 2), "device lost"]]
