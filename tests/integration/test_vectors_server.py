"""A node whose vectors are in a Milvus server: moved there from Lite, searched by its engine, and made anew from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pytest

from nearmesh.v1 import vector_pb2 as pb
from tests.integration.vector_node import DOCS, VectorNode, create, rows, vector, vector_node
from tests.milvus_server import TOKEN, MilvusServer

VARIABLE = "NEARMESH_TEST_MILVUS_TOKEN"
# A machine that is busy with others' tests; a server takes seconds for what Lite does at once.
WITHIN_S = 90.0


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, TOKEN)


async def nearest(node: VectorNode, number: int) -> tuple[list[str], str]:
    found = await node.stub.Search(pb.SearchRequest(collection=DOCS, vector=vector(number), k=3), timeout=WITHIN_S)
    return [hit.row.id for hit in found.hits], found.way


async def test_a_node_moves_from_lite_to_a_server_and_is_made_anew_from_it(
    tmp_path: Path, milvus_server: MilvusServer
) -> None:
    folder = tmp_path / "vectors"
    async with vector_node(folder) as first:
        await create(first)
        await first.stub.Upsert(pb.UpsertRequest(collection=DOCS, rows=rows(0, 300)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            request = pb.MigrateRequest(uri=milvus_server.uri, token_variable="NOT_SET")
            _ = [one async for one in first.stub.Migrate(request, timeout=WITHIN_S)]
        assert "NOT_SET, which is not set" in (refused.value.details() or "")
        request = pb.MigrateRequest(uri=milvus_server.uri, token_variable=VARIABLE)
        moved = [one async for one in first.stub.Migrate(request, timeout=WITHIN_S)]
        assert moved[-1].phase == "done"
        await first.stub.Upsert(pb.UpsertRequest(collection=DOCS, rows=rows(300, 10)))
        await first.stub.Delete(pb.DeleteRequest(collection=DOCS, ids=["000003"]))
    shutil.rmtree(folder / "tables")
    # The old store stays as it was, and is not asked any more.
    assert (folder / "milvus.db").is_dir()
    async with vector_node(folder) as second:
        there = await second.ids()
        assert len(there) == 309 and "000003" not in there
        assert (await nearest(second, 305))[0][0] == "000305"
        assert (await second.stub.DropCollection(DOCS, timeout=WITHIN_S)).rows == 309


async def test_the_servers_own_engine_answers_with_what_it_does_not_see_yet(
    tmp_path: Path, milvus_server: MilvusServer
) -> None:
    where = {"uri": milvus_server.uri, "token_variable": VARIABLE, "index": "engine"}
    async with vector_node(tmp_path / "vectors", **where) as node:
        await create(node)
        await node.stub.Upsert(pb.UpsertRequest(collection=DOCS, rows=rows(0, 200)), timeout=WITHIN_S)
        ids, way = await nearest(node, 7)
        assert (ids[0], way) == ("000007", "engine")
        await node.stub.Delete(pb.DeleteRequest(collection=DOCS, ids=["000007"]), timeout=WITHIN_S)
        assert "000007" not in (await nearest(node, 7))[0]
        await node.kill()
        assert "000007" not in (await nearest(node, 7))[0]
        assert len(await node.ids()) == 199
        assert (await node.stub.DropCollection(DOCS, timeout=WITHIN_S)).rows
