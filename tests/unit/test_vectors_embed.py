"""Texts to vectors, and passages to scores, through the queue of a served model."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from nearmesh_agent.vectors.text import embed as module
from nearmesh_agent.vectors.text import rerank
from nearmesh_agent.vectors.text.embed import Embedding, Urgency, shape_of

from nearmesh.errors import DeadlineExceeded, EngineFailure, InvalidInput, Overloaded
from tests import text_models
from tests.text_models import DIMENSION, embedder, embedder_package, replica_of, vector
from tests.tiny_models import package, spec


async def embedded(engine, texts, *, urgency=Urgency.ROWS, timeout_s=None, **config):
    replica = await replica_of(engine, embedder_package(), **config)
    try:
        return await Embedding().embed(replica, texts, urgency=urgency, timeout_s=timeout_s)
    finally:
        await replica.close()


@pytest.mark.parametrize("urgency", list(Urgency))
async def test_each_text_has_its_own_vector(urgency):
    texts = [f"{'word ' * (number % 5)}text {number}" for number in range(11)]
    engine = embedder()
    found = await embedded(engine, texts, urgency=urgency)
    np.testing.assert_array_equal(found, [vector(text) for text in texts])
    assert found.dtype == np.float32 and max(map(len, engine.calls)) <= module.CALL_ROWS


async def test_one_query_is_one_call():
    engine = embedder()
    assert (await embedded(engine, ["hello"], urgency=Urgency.QUERY)).shape == (1, DIMENSION)
    assert engine.calls == [["hello"]]


async def test_no_texts_need_no_call():
    engine = embedder()
    assert (await embedded(engine, [])).shape == (0, DIMENSION) and engine.calls == []


def test_texts_of_one_length_share_a_call_and_long_ones_go_alone():
    texts = ["x" * 400, "a", "y" * 900, "b", "z" * 5000, "w" * 400, "v" * 400]
    assert module.parts(texts) == [[1, 3], [0, 5], [6], [2], [4]]
    assert [len(part) for part in module.parts(["ab"] * 40)] == [16, 16, 8]
    assert module.parts(["é" * 300, "x" * 500]) == [[1], [0]], "in bytes, as tokens are nearer to"


async def test_p6_a_users_query_goes_before_the_rows_that_wait():
    engine, embedding = embedder(), Embedding()
    replica = await replica_of(engine, embedder_package())
    engine.open.clear()
    rows = asyncio.create_task(embedding.embed(replica, ["row " * 200] * 3, urgency=Urgency.ROWS))
    await engine.entered()
    query = asyncio.create_task(embedding.embed(replica, ["query"], urgency=Urgency.QUERY))
    await asyncio.sleep(0)
    engine.open.set()
    await asyncio.gather(rows, query)
    assert engine.calls[1] == ["query"], "it waits for the call that runs, and for no other"
    await replica.close()


@pytest.mark.parametrize(
    ("urgency", "asked", "expected"),
    [(Urgency.ROWS, False, 2), (Urgency.ROWS, True, 1), (Urgency.BACKGROUND, False, 1)],
)
async def test_an_instance_is_left_to_those_who_ask(urgency, asked, expected):
    now = 100.0
    engine, embedding = embedder(instances=2), Embedding(lambda: now)
    replica = await replica_of(engine, embedder_package())
    if asked:
        await embedding.embed(replica, ["query"], urgency=Urgency.QUERY)
        await engine.entered()
    engine.open.clear()
    rows = asyncio.create_task(embedding.embed(replica, ["long " * 300] * 4, urgency=urgency))
    for _ in range(expected):
        await engine.entered()
    assert replica.in_flight == expected
    now += 2 * module.QUIET_S
    engine.open.set()
    assert (await rows).shape == (4, DIMENSION)
    await replica.close()


async def test_rows_wait_where_the_queue_is_full_and_a_query_is_told():
    engine, embedding = embedder(), Embedding()
    replica = await replica_of(engine, embedder_package(), queue=1)
    engine.open.clear()
    first = [asyncio.create_task(embedding.embed(replica, [text], urgency=Urgency.QUERY)) for text in "ab"]
    await engine.entered()
    rows = asyncio.create_task(embedding.embed(replica, ["row"], urgency=Urgency.ROWS))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await embedding.embed(replica, ["c"], urgency=Urgency.QUERY)
    engine.open.set()
    assert (await rows).shape == (1, DIMENSION)
    await asyncio.gather(*first)
    await replica.close()


async def test_rows_that_are_late_are_told_how_to_go_on():
    engine = embedder()
    engine.open.clear()
    replica = await replica_of(engine, embedder_package(), close_s=0.01)
    with pytest.raises(DeadlineExceeded, match=r"2 texts had no vectors by 'embedder' within 0\.0 s; send"):
        await Embedding().embed(replica, ["a", "b"], urgency=Urgency.ROWS, timeout_s=0.01)
    engine.open.set()
    await replica.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "text 1 is empty; expected words"),
        (" \n", "text 1 is empty"),
        ("é" * 50_001, "text 1 has 100002 bytes, expected 100000 at most; send it in parts"),
    ],
)
async def test_what_has_no_vector_is_refused(text, said):
    engine = embedder()
    with pytest.raises(InvalidInput, match=said):
        await embedded(engine, ["fine", text])
    assert engine.calls == []


@pytest.mark.parametrize(("scale", "said"), [(float("nan"), "not all finite"), (0.0, "a vector of zeros")])
async def test_vectors_that_no_index_may_get_are_refused(scale, said):
    with pytest.raises(EngineFailure, match=said):
        await embedded(embedder(scale=scale), ["a"])


NO_EMBEDDERS = {
    "two inputs": package("m", [spec("a", "BYTES", -1), spec("b", "BYTES", -1)], [spec("y", "FP32", -1, 4)]),
    "numbers": package("m", [spec("x", "FP32", -1)], [spec("y", "FP32", -1, 4)]),
    "no vector": package("m", [spec("x", "BYTES", -1)], [spec("y", "FP32", -1)]),
    "two vectors": package("m", [spec("x", "BYTES", -1)], [spec("y", "FP32", -1, 4), spec("z", "FP32", -1, 4)]),
}


@pytest.mark.parametrize("described", NO_EMBEDDERS.values(), ids=NO_EMBEDDERS.keys())
def test_what_is_no_embedder_is_refused(described):
    with pytest.raises(InvalidInput, match="model 'm' is no embedder: it needs one input, BYTES"):
        shape_of(described)


# Reranking.


async def test_passages_are_scored_in_parts_and_in_order():
    engine = text_models.reranker()
    replica = await replica_of(engine, text_models.reranker_package())
    texts = ["x"] * 9 + ["the storm", "a storm at the barn"]
    scores = await rerank.score(replica, "storm barn the", texts, timeout_s=5)
    assert scores == [0] * 9 + [2, 3] and [len(call) for call in engine.calls] == [8, 3]
    await replica.close()


@pytest.mark.parametrize(("k", "asked", "expected"), [(10, 0, 30), (10, 50, 50), (100, 0, 200)])
def test_how_many_are_scored(k, asked, expected):
    assert rerank.how_many(k, asked) == expected


@pytest.mark.parametrize(
    ("k", "asked", "said"),
    [
        (10, 5, r"rerank_k is 5, expected k \(10\) or more"),
        (10, 201, "10 and 201, expected 200"),
        (500, 0, "500 and 0"),
    ],
)
def test_a_number_that_cannot_be_scored_is_refused(k, asked, said):
    with pytest.raises(InvalidInput, match=said):
        rerank.how_many(k, asked)


@pytest.mark.parametrize("described", [*NO_EMBEDDERS.values(), embedder_package()])
def test_what_is_no_reranker_is_refused(described):
    with pytest.raises(InvalidInput, match="is no reranker: it needs two inputs, `query` and `text`"):
        rerank.shape_of(described)


async def test_scores_that_are_none_are_refused():
    engine = text_models.TextEngine(lambda inputs: {"score": np.full((len(inputs["text"]), 1), np.nan, np.float32)})
    replica = await replica_of(engine, text_models.reranker_package())
    with pytest.raises(EngineFailure, match="for 1 pairs, expected finite"):
        await rerank.score(replica, "a", ["b"], timeout_s=5)
    await replica.close()
