"""What meets at a site: writes of many callers, drops, generations, and a move to another store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nearmesh_agent.vectors.changes import Delete

from nearmesh.errors import (
    InvalidInput,
    NotFound,
    NotReady,
    Unreachable,
)
from nearmesh.v1 import vector_pb2 as pb
from tests.vector_parts import DictParts
from tests.vector_site import Context, Site, applier_of, ref, row, site


@pytest.fixture
async def docs(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as found:
        await found.create()
        yield found


async def test_writes_of_many_callers_share_the_disk(docs: Site) -> None:
    journal: Any = docs.keeper.journal
    journal.gate.clear()
    writes = [asyncio.create_task(docs.upsert(row(f"{n}"))) for n in range(20)]
    for _ in range(20):
        await asyncio.sleep(0)
    journal.gate.set()
    await asyncio.gather(*writes)
    assert len(await docs.ids()) == 20
    assert len(journal.groups) < 20


async def test_a_write_that_comes_while_another_is_put_into_the_index_waits_for_its_turn(docs: Site) -> None:
    (collection,) = docs.keeper
    index: Any = collection.serving.index
    begun, go_on = threading.Event(), threading.Event()

    def slow(write: Any, position: int) -> None:
        begun.set()
        assert go_on.wait(10)
        type(index).apply(index, write, position)

    index.apply = slow
    first = asyncio.create_task(docs.upsert(row("a")))
    assert await asyncio.to_thread(begun.wait, 10)
    second = asyncio.create_task(docs.upsert(row("b")))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(first, second)
    assert await docs.ids() == ["a", "b"]


async def test_a_collection_whose_index_lacks_what_is_on_disk_takes_no_more(docs: Site) -> None:
    (collection,) = docs.keeper
    index: Any = collection.serving.index

    def fails(write: Any, position: int) -> None:
        raise MemoryError

    index.apply = fails
    with pytest.raises(MemoryError):
        await docs.upsert(row("a"))
    with pytest.raises(NotReady, match="half-way"):
        await docs.upsert(row("b"))


async def test_nor_does_it_take_what_waited_behind_the_write_that_failed(docs: Site) -> None:
    """It would be saved with the position of the later one, and lack the earlier one for good."""
    (collection,) = docs.keeper
    index: Any = collection.serving.index
    begun, go_on = threading.Event(), threading.Event()

    def fails(write: Any, position: int) -> None:
        begun.set()
        assert go_on.wait(10)
        del index.apply
        raise MemoryError

    index.apply = fails
    first = asyncio.create_task(docs.upsert(row("a")))
    assert await asyncio.to_thread(begun.wait, 10)
    second = asyncio.create_task(collection.put(Delete(ids=["b"])))
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(MemoryError):
        await first
    with pytest.raises(NotReady, match="half-way"):
        await second
    assert collection.broken


async def test_collections_that_are_dropped_at_once_are_all_cleared_away(docs: Site) -> None:
    names = ["docs", *(f"{number}" for number in range(5))]
    for name in names[1:]:
        await docs.create(name)
    await asyncio.gather(*(docs.ask("DropCollection", ref(name)) for name in names))
    assert not docs.parts.disk.store and not docs.parts.disk.indexes and not docs.keeper.specs.dropped


async def test_a_write_that_comes_as_its_collection_is_dropped_is_told_so(docs: Site) -> None:
    (collection,) = docs.keeper
    collection.hold(60)
    held = asyncio.create_task(collection.put(Delete(ids=["held"])))
    await asyncio.sleep(0)
    before = docs.keeper.journal.position
    await docs.ask("DropCollection", ref())
    for late in (held, collection.put(Delete(ids=["late"]))):
        with pytest.raises(NotFound, match="'docs' was dropped meanwhile"):
            await late
    assert docs.keeper.journal.position == before


@pytest.mark.parametrize("step", ["put", "drop"])
async def test_what_a_caller_began_and_left_is_there_or_gone_as_a_whole(
    docs: Site, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A call is cancelled when its time is up; half of it would be on the disk and not in memory."""
    begun, go_on = threading.Event(), threading.Event()
    own = getattr(docs.keeper.specs, step)

    def slow(spec: Any) -> None:
        own(spec)
        begun.set()
        assert go_on.wait(10)

    monkeypatch.setattr(docs.keeper.specs, step, slow)
    call = asyncio.create_task(docs.create("new") if step == "put" else docs.ask("DropCollection", ref()))
    assert await asyncio.to_thread(begun.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go_on.set()
    async with docs.keeper._making:
        assert sorted(one.spec.name for one in docs.keeper) == sorted(one.name for one in docs.keeper.specs)


async def test_recall_is_measured_on_searches_that_were_answered(docs: Site) -> None:
    await docs.upsert(row("a"), row("b", 0, 1))
    await docs.search([1, 0])
    await docs.upkeep._round()
    assert (await docs.ask("GetCollection", ref())).recall == 1.0


async def test_what_changes_leaves_the_generation_that_is_being_filled(docs: Site) -> None:
    from nearmesh_agent.vectors import opening
    from nearmesh_agent.vectors.model import Table, Write
    from nearmesh_agent.vectors.wire import row as read

    (collection,) = docs.keeper
    await docs.upsert(row("a"), row("b"), row("c"))
    table = Table(name="next", dimension=2, metric=collection.serving.table.metric)
    collection.filling = opening.empty(docs.parts, table, docs.keeper.journal.position, docs.keeper)
    rows = [read(row(name, 5, 5), table) for name in "abc"]
    collection.filling.index.apply(Write(table="next", rows=rows), docs.keeper.journal.position)
    await docs.upsert(row("a", text="changed"))
    await docs.ask("Delete", pb.DeleteRequest(collection=ref(), ids=["b"]))
    assert collection.filling.index.select(None) == ["c"]
    assert (await docs.ask("GetCollection", ref())).next_generation == 0.5


async def test_a_process_whose_memory_differs_from_its_journal_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nearmesh_agent.vectors import upkeep

    from nearmesh.errors import EngineFailure

    monkeypatch.setattr(upkeep, "EVERY_S", 0.0)
    parts = DictParts()
    async with site(tmp_path, parts) as first:
        await first.create()
        (collection,) = first.keeper
        monkeypatch.setattr(collection.serving.index, "apply", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await first.upsert(row("a"))
        with pytest.raises(NotReady, match="opened anew"):
            await first.upsert(row("b"))
        with pytest.raises(EngineFailure, match="'docs' failed half-way"):
            await first.upkeep.run()
        await first.upkeep._look_what_is_saved()
    assert parts.disk.ledger == 0, "the ledger was not told of it either, and is told again at a start"
    async with site(tmp_path, parts) as second:
        assert await second.ids() == ["a"], "it was on disk"


async def test_everything_moves_to_another_store_while_it_is_written(tmp_path: Path) -> None:
    parts = DictParts()
    async with site(tmp_path, parts) as first:
        await first.create()
        await first.create("other")
        await first.upsert(*(row(f"{n}") for n in range(5)))
        moved = [one async for one in first.servicer.Migrate(pb.MigrateRequest(uri="http://milvus"), Context("*"))]
        assert [one.phase for one in moved][-1] == "done"
        await first.upsert(row("later"))
        applier_of(first).step()
        assert sorted(len(table.all()) for table in parts.disk.stores["http://milvus"].values()) == [0, 6]
        assert sorted(len(table.all()) for table in parts.disk.stores[""].values()) == [0, 5], "it is left as it was"
        again = [one async for one in first.servicer.Migrate(pb.MigrateRequest(uri="http://milvus"), Context("*"))]
        assert [one.phase for one in again] == ["done"]
        with pytest.raises(InvalidInput, match="'nowhere' is no store"):
            async for _ in first.servicer.Migrate(pb.MigrateRequest(uri="nowhere"), Context("*")):
                pass
        await first.create("third")
    parts.disk.indexes.clear()
    async with site(tmp_path, parts) as second:
        assert await second.ids() == ["0", "1", "2", "3", "4", "later"]


async def test_two_that_ask_for_a_move_at_once_watch_one(docs: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await docs.upsert(row("a"))
    opened: list[str] = []
    own = docs.parts.elsewhere

    def elsewhere(uri: str, token_variable: str) -> Any:
        opened.append(uri)
        return own(uri, token_variable)

    monkeypatch.setattr(docs.parts, "elsewhere", elsewhere)

    async def move() -> str:
        request = pb.MigrateRequest(uri="http://milvus")
        return [one.phase async for one in docs.servicer.Migrate(request, Context("*"))][-1]

    assert await asyncio.gather(move(), move()) == ["done", "done"]
    assert opened == ["http://milvus"]


async def test_while_the_store_is_exchanged_no_collection_comes_or_goes(docs: Site) -> None:
    async with docs.keeper.standing_still():
        with pytest.raises(NotReady, match="moved to another Milvus"):
            await docs.create("new")
        with pytest.raises(NotReady, match="moved to another Milvus"):
            await docs.ask("DropCollection", ref())
        await docs.upsert(row("a"))
    await docs.create("new")


async def test_a_move_that_fails_leaves_the_old_store_in_use(docs: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from nearmesh_agent.vectors import moving

    def broken(*_: object) -> Any:
        raise Unreachable("Milvus went away")
        yield

    monkeypatch.setattr(moving, "migrate", broken)
    with pytest.raises(Unreachable, match="went away"):
        async for _ in docs.servicer.Migrate(pb.MigrateRequest(uri="http://milvus"), Context("*")):
            pass
    assert docs.parts.disk.uri == ""
    await docs.create("new")
