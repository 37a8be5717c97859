"""Models that give several answers to one request: in order, to the end, and when somebody leaves in the middle."""

from __future__ import annotations

import asyncio
import queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc as sync_triton

from nearmesh import tensors
from nearmesh.errors import EngineFailure
from tests import tiny_models
from tests.inference_server import load, serving
from tests.integration.oip_client import client_of, given, stub_of, two_models, until
from tests.integration.oip_streams import COUNTER, Counter, add, answer, count, of


@pytest.fixture
async def counter():
    async with of(COUNTER, Counter()) as (_, stub, replica):
        replica.counting = replica._active.engine
        yield stub, replica


async def test_bytes_of_all_answers_to_a_request_are_counted(counter):
    stub, replica = counter
    replica.counting.open.set()
    request = tensors.encode_request("counter", {"x": np.array([3])})
    answers = [part.infer_response async for part in stub.ModelStreamInfer(iter([request]))]
    assert len(answers) == 3
    assert replica.tally.bytes_in == request.ByteSize()
    assert replica.tally.bytes_out == sum(answer.ByteSize() for answer in answers)


async def test_several_answers_to_each_request_in_order(counter):
    stub, replica = counter
    call = stub.ModelStreamInfer()
    for request in (count(3, request_id="a"), count(0, request_id="b"), count(2, request_id="c")):
        await call.write(request)
    await call.done_writing()
    found = [response.infer_response async for response in call]
    values = [(each.id, int(tensors.decode_response(each)["y"][0])) for each in found]
    assert values == [("a", 0), ("a", 1), ("a", 2), ("c", 0), ("c", 1)]
    assert all([output.name for output in each.outputs] == ["y"] and not each.parameters for each in found)
    assert replica.tally.outcomes == {"OK": 3}


@pytest.mark.parametrize("numbers", [(0,), (1,), (3,)])
async def test_an_empty_answer_at_the_end_for_those_who_ask(counter, numbers):
    stub, _ = counter
    call = stub.ModelStreamInfer()
    await call.write(count(*numbers, final=True))
    found = [(await call.read()).infer_response for _ in range(numbers[0] + 1)]
    flags = [each.parameters["triton_final_response"].bool_param for each in found]
    assert flags == [False] * numbers[0] + [True]
    assert not found[-1].outputs and (found[-1].model_name, found[-1].id) == ("counter", "r")
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_single_answer_is_the_final_one(tmp_path):
    async with two_models(tmp_path) as running, stub_of(running) as stub:
        call = stub.ModelStreamInfer()
        for final in (True, False):
            request = add(0)
            request.parameters["triton_enable_empty_final_response"].bool_param = final
            await call.write(request)
            found = (await call.read()).infer_response
            assert ("triton_final_response" in found.parameters) is final
            assert found.parameters["triton_final_response"].bool_param is final and len(found.outputs) == 2
        call.cancel()


async def test_several_answers_with_the_stock_client(counter):
    _, replica = counter

    def use(address):
        answers: queue.Queue = queue.Queue()
        with sync_triton.InferenceServerClient(address) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            for final in (True, False):
                inputs = given(sync_triton, x=np.array([2]))
                client.async_stream_infer("counter", inputs, request_id=f"{final}", enable_empty_final_response=final)
            found = [answers.get(timeout=20) for _ in range(5)]
            client.stop_stream()
        return found

    async with serving([replica]) as running:
        found = await asyncio.to_thread(use, running.address)
    assert [error for _, error in found] == [None] * 5
    seen = [(result.get_response().id, result.as_numpy("y")) for result, _ in found]
    numbers = [(name, None if array is None else int(array[0])) for name, array in seen]
    assert numbers == [("True", 0), ("True", 1), ("True", None), ("False", 0), ("False", 1)]


async def test_several_answers_with_the_stock_client_of_asyncio(counter):
    _, replica = counter

    async def requests():
        for numbers in ([2], [3, 1], [1]):
            yield {"model_name": "counter", "inputs": given(x=np.array(numbers)), "request_id": f"{numbers}"}

    async with serving([replica]) as running, client_of(running) as client:
        found = [
            str(error.message()) if error else int(result.as_numpy("y")[0])
            async for result, error in client.stream_infer(requests())
        ]
    assert found == [0, 1, 0, "no 1", 0]


async def test_an_error_in_the_middle_ends_the_request_and_not_the_stream(counter):
    stub, replica = counter
    call = stub.ModelStreamInfer()
    for request in (count(5, 2), count(1)):
        await call.write(request)
    assert [await answer(call) for _ in range(4)] == [0, 1, "no 2", 0]
    await until(lambda: replica.tally.outcomes == {EngineFailure.reason: 1, "OK": 1})
    call.cancel()


async def test_a_wrong_request_never_begins(counter):
    stub, replica = counter
    call = stub.ModelStreamInfer()
    wrong = count(1)
    wrong.outputs[0].name = "words"
    await call.write(wrong)
    assert "output 'words' is asked for; 'counter' has 'y', 'text'" in await answer(call)
    assert replica.counting.begun == 0
    call.cancel()


async def test_the_caller_leaves_in_the_middle(counter):
    stub, replica = counter
    engine = replica.counting
    engine.open.clear()
    call = stub.ModelStreamInfer()
    await call.write(count(1000))
    await engine.entered()
    call.cancel()
    engine.open.set()
    await until(lambda: engine.ended == 1)
    assert engine.made <= 1
    # Its place is free.
    again = stub.ModelStreamInfer()
    await again.write(count(1))
    assert await answer(again) == 0
    await until(lambda: replica.tally.outcomes == {"CANCELLED": 1, "OK": 1})
    again.cancel()


async def test_the_caller_leaves_between_two_answers(counter):
    """Nothing is made for a caller who does not read; the connection holds some answers."""
    stub, replica = counter
    engine = replica.counting
    call = stub.ModelStreamInfer()
    await call.write(count(10_000_000))
    assert await answer(call) == 0
    call.cancel()
    await until(lambda: engine.ended == 1)
    assert engine.made < 10_000_000


async def test_the_deadline_passes_in_the_middle(counter):
    stub, replica = counter
    engine = replica.counting
    call = stub.ModelStreamInfer()
    engine.open.clear()
    late = count(5)
    late.parameters["timeout"].int64_param = 20_000
    await call.write(late)
    assert "had not given all its answers by the deadline" in await answer(call)
    # What comes after it waits for the thread that is still at work.
    await call.write(count(1))
    await until(lambda: len(replica._active.streams) == 2)
    assert engine.begun == 1
    engine.open.set()
    assert await answer(call) == 0
    assert engine.begun == 2
    call.cancel()


async def test_one_answer_is_not_offered_by_a_model_that_gives_several(counter):
    stub, replica = counter
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(count(1))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "call ModelStreamInfer" in caught.value.details()
    assert replica.counting.begun == 0


async def test_models_of_both_kinds_on_one_stream(tmp_path):
    adder = await load(tmp_path, tiny_models.adder(tmp_path))
    async with of(COUNTER, Counter(), adder) as (_, stub, _):
        call = stub.ModelStreamInfer()
        for request in (count(2), add(7, outputs=["less"]), count(1), add(8, outputs=["less"])):
            await call.write(request)
        assert [await answer(call) for _ in range(5)] == [0, 1, 7, 0, 8]
        call.cancel()
