"""The process that keeps a node's vectors, as it is: Milvus Lite, journal, index and words, killed in the middle."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from nearmesh_agent.vectors.front import SERVICE

from nearmesh.v1 import vector_pb2 as pb
from tests.integration.mesh_processes import until
from tests.integration.vector_node import DOCS, VectorNode, create, rows, vector, vector_node
from tests.signals import send

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VectorNode]:
    async with vector_node(tmp_path_factory.mktemp("node") / "vectors") as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def node(running: VectorNode) -> AsyncIterator[VectorNode]:
    """One for all tests; each finds an empty collection, and no other."""
    await create(running)
    yield running
    await running.ready()
    for one in (await running.stub.ListCollections(pb.ListCollectionsRequest())).collections:
        await running.stub.DropCollection(one.collection, timeout=60)


async def test_rows_are_written_found_by_vector_filter_and_words_and_deleted(node: VectorNode) -> None:
    done = await node.stub.Upsert(pb.UpsertRequest(collection=DOCS, rows=rows(0, 300)))
    assert (done.written, done.unchanged) == (300, 0)
    done = await node.stub.Upsert(pb.UpsertRequest(collection=DOCS, rows=[*rows(0, 300), *rows(300, 5, year=1999)]))
    assert (done.written, done.unchanged) == (5, 300)
    found = await node.stub.Search(pb.SearchRequest(collection=DOCS, vector=vector(7), k=3))
    assert found.hits[0].row.id == "000007" and found.hits[0].score == pytest.approx(1.0, abs=1e-5)
    found = await node.stub.Search(pb.SearchRequest(collection=DOCS, vector=vector(7), k=99, filter="year < 2000"))
    assert sorted(hit.row.id for hit in found.hits) == [f"{n:06}" for n in range(300, 305)]
    passages = await node.stub.Search(pb.SearchRequest(collection=DOCS, vector=vector(301), k=1, exact=True))
    assert (passages.hits[0].row.text, passages.way) == ("passage number 301", "exact")
    gone = await node.stub.Delete(pb.DeleteRequest(collection=DOCS, filter="year < 2000"))
    assert gone.deleted == 5
    assert len(await node.ids()) == 300
    for wrong, said in (
        (pb.SearchRequest(collection=DOCS, vector=b"12"), "has 2 bytes"),
        (pb.SearchRequest(collection=DOCS, vector=vector(1), filter="year = "), "filter"),
        (pb.SearchRequest(collection=DOCS, vector=vector(1), filter="(" * 2000), "filter"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await node.stub.Search(wrong)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT and said in (refused.value.details() or "")


async def test_words_lose_their_endings_as_in_the_collections_language_after_a_kill_too(node: VectorNode) -> None:
    ref = pb.CollectionRef(name="haus")
    create_it = pb.CreateCollectionRequest(collection=ref, dimension=len(vector(1)) // 4, language="german")
    assert (await node.stub.CreateCollection(create_it, timeout=60)).language == "german"
    row = pb.Row(id="a", vector=vector(1), text="Die Häuser stehen am Fluss.")
    await node.stub.Upsert(pb.UpsertRequest(collection=ref, rows=[row]))
    asked = pb.RetrieveRequest(collection=ref, text="Haus", mode=pb.RetrieveRequest.MODE_LEXICAL).SerializeToString()
    for killed in (False, True):
        if killed:
            await node.kill()
        assert node.part.channel
        answer = await node.part.channel.call(f"/{SERVICE}/Retrieve", asked, reach="default", timeout_s=10)
        assert [hit.row.id for hit in pb.RetrieveResponse.FromString(answer).hits] == ["a"]


async def test_an_index_type_that_the_engine_lacks_is_refused_and_nothing_is_left_of_it(node: VectorNode) -> None:
    request = pb.CreateCollectionRequest(collection=pb.CollectionRef(name="x"), dimension=4, index_type="GPU_CAGRA")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await node.stub.CreateCollection(request, timeout=60)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED and "GPU_CAGRA" in (refused.value.details() or "")
    listed = await node.stub.ListCollections(pb.ListCollectionsRequest())
    assert [one.collection.name for one in listed.collections] == ["docs"]


async def test_p3_what_was_acknowledged_outlives_kills_in_the_middle_of_writes(node: VectorNode) -> None:
    """Every acknowledged row is there, none twice, and deleted ones stay deleted."""
    written: set[str] = set()
    deleted: set[str] = set()
    stop = asyncio.Event()

    async def write(first: int) -> None:
        number = first
        while not stop.is_set():
            batch = rows(number, 20)
            number += 20
            try:
                await node.stub.Upsert(pb.UpsertRequest(collection=DOCS, rows=batch), timeout=10)
                written.update(row.id for row in batch)
                victims = [batch[0].id, batch[-1].id]
                await node.stub.Delete(pb.DeleteRequest(collection=DOCS, ids=victims), timeout=10)
                deleted.update(victims)
            except grpc.aio.AioRpcError as error:
                assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), error
                # Not acknowledged: it may be there or not.
                written.difference_update(row.id for row in batch)
                await asyncio.sleep(0.05)

    before = node.part.ended
    writers = [asyncio.create_task(write(first)) for first in (0, 100_000)]
    for _ in range(3):
        wanted = len(written) + 200

        async def enough(wanted: int = wanted) -> bool:
            return len(written) >= wanted

        await until(enough, within_s=60, what="more rows are written")
        await node.kill()
    stop.set()
    await asyncio.gather(*writers)
    there = await node.ids()
    assert len(there) == len(set(there))
    assert written - deleted <= set(there)
    assert deleted.isdisjoint(there)
    assert node.part.ended == before + 3


async def test_a_node_starts_again_with_all_that_it_had_and_moves_to_another_store(tmp_path: Path) -> None:
    """In a folder with so long a name that its socket lies elsewhere."""
    folder, other = tmp_path / ("x" * 100) / "vectors", tmp_path / "other"
    async with vector_node(folder) as first:
        assert not (folder / "socket").exists()
        await create(first)
        await first.stub.Upsert(pb.UpsertRequest(collection=DOCS, rows=rows(0, 500)))
    async with vector_node(folder) as second:
        assert len(await second.ids()) == 500
        moved = [one async for one in second.stub.Migrate(pb.MigrateRequest(uri=str(other)), timeout=90)]
        assert moved[-1].phase == "done" and {one.phase for one in moved} >= {"copying", "done"}
        await second.stub.Upsert(pb.UpsertRequest(collection=DOCS, rows=rows(500, 10)))
    # The index is lost: everything comes from where it was moved to, and the journal.
    shutil.rmtree(folder / "tables")
    async with vector_node(folder) as third:
        assert len(await third.ids()) == 510


async def test_the_engine_searches_where_the_index_is_not_to_be_in_memory(tmp_path: Path) -> None:
    async with vector_node(tmp_path / "vectors", index="engine") as node:
        await create(node)
        await node.stub.Upsert(pb.UpsertRequest(collection=DOCS, rows=rows(0, 200)))
        found = await node.stub.Search(pb.SearchRequest(collection=DOCS, vector=vector(7), k=3))
        assert (found.hits[0].row.id, found.way) == ("000007", "engine")
        await node.stub.Delete(pb.DeleteRequest(collection=DOCS, ids=["000007"]))
        await node.kill()

        async def answered() -> pb.SearchResponse | None:
            try:
                asked = pb.SearchRequest(collection=DOCS, vector=vector(7), k=3)
                return await node.stub.Search(asked, timeout=30)  # type: ignore[no-any-return]
            except grpc.aio.AioRpcError as error:
                # Milvus Lite takes a while to begin.
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                return None

        found = await until(answered, within_s=90, what="the engine answers")
        assert "000007" not in [hit.row.id for hit in found.hits] and len(found.hits) == 3


async def test_a_node_without_what_vectors_need_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nearmesh_agent.vectors import part

    monkeypatch.setattr(part, "NEEDED", {"no_such_module_at_all": "no-such"})
    found = VectorNode(tmp_path / "vectors", part.VectorsConfig(enabled=True)).part
    await found.run()
    assert "lacks no-such: pip install 'nearmesh-agent[vectors]'" in found.detail


async def test_p10_a_process_that_hangs_is_told_and_started_anew(
    node: VectorNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nearmesh_agent.vectors import part

    ended, silent_s = node.part.ended, part.SILENT_S
    await node.stub.Upsert(pb.UpsertRequest(collection=DOCS, rows=rows(0, 10)))
    send(node.part.pid, signal.SIGSTOP)
    # Not before: on a busy machine one that does not hang may be silent for so long.
    monkeypatch.setattr(part, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(part, "SILENT_S", 1.0)

    async def told() -> bool:
        return bool(node.part.detail)

    # One look may have begun with the time that is meant for users.
    await until(told, within_s=silent_s + 10, what="the node says that its vectors cannot be asked for")

    async def gone() -> bool:
        return node.part.ended > ended

    await until(gone, within_s=10, what="it is killed")
    # The next one has to start.
    monkeypatch.setattr(part, "SILENT_S", silent_s)

    async def back() -> bool:
        return node.part.ended == ended + 1 and not node.part.detail

    await until(back, within_s=60, what="another process answers")
    assert len(await node.ids()) == 10


async def test_a_bug_in_what_looks_after_the_vectors_ends_no_agent(
    node: VectorNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from nearmesh_agent.vectors import part

    monkeypatch.setattr(part, "LONGEST_WAIT_S", 0.1)
    monkeypatch.setattr(node.part.front, "looked_at", lambda _: 1 / 0)

    async def noticed() -> bool:
        return "begun anew" in caplog.text

    await until(noticed, within_s=20, what="the bug is logged")
    monkeypatch.undo()
    await node.ready()
    assert await node.ids() == []


async def test_the_agents_own_process_loads_nothing_of_what_its_vectors_need() -> None:
    program = (
        "import sys, nearmesh_agent.server\n"
        "print({'faiss', 'milvus_lite', 'pymilvus', 'pypdf', 'tantivy'} & set(sys.modules) or 'none')"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert (process.returncode, said) == (0, b"none\n")
