"""What a site keeps: over a disk that refuses, a kill, indexes and words that are lost, and a store that is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nearmesh_agent.vectors import collections

from nearmesh.errors import (
    NotFound,
    NotReady,
    StorageFull,
    Unreachable,
)
from nearmesh.v1 import vector_pb2 as pb
from tests.vector_parts import DictParts, DictStore
from tests.vector_site import Site, applier_of, ref, row, site


@pytest.fixture
async def docs(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as found:
        await found.create()
        yield found


async def test_a_write_that_the_disk_refuses_changes_nothing(docs: Site) -> None:
    docs.keeper.journal.full = True  # type: ignore[attr-defined]
    with pytest.raises(StorageFull):
        await docs.upsert(row("a"))
    assert await docs.ids() == []
    docs.keeper.journal.full = False  # type: ignore[attr-defined]
    assert (await docs.upsert(row("a"))).written == 1


async def test_a_disk_without_room_for_the_index_is_told_before_the_journal_has_the_rows(docs: Site) -> None:
    """There, they would end the process, and each one after it, until there is room again."""
    docs.parts.disk.full = True
    with pytest.raises(StorageFull, match="no room for 1 rows more in the index"):
        await docs.upsert(row("a"))
    assert docs.keeper.journal.position == 0
    docs.parts.disk.full = False
    assert (await docs.upsert(row("a"))).written == 1


async def test_a_disk_without_room_for_a_collection_is_told(docs: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    docs.parts.disk.full = True
    with pytest.raises(StorageFull, match="no room for a new collection"):
        await docs.create("new")
    docs.parts.disk.full = False

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as refuses:
        refuses.setattr(collections, "write_private", full)
        with pytest.raises(StorageFull, match="'new' cannot be written down: No space left"):
            await docs.create("new")
        with pytest.raises(StorageFull, match="'docs' cannot be written down"):
            await docs.ask("DropCollection", ref())
    await docs.create("new")
    await docs.upsert(row("a"))


async def test_what_was_acknowledged_is_there_after_a_kill_and_what_was_deleted_stays_so(tmp_path: Path) -> None:
    parts = DictParts()
    async with site(tmp_path, parts, killed=True) as first:
        await first.create()
        await first.upsert(row("a"), row("b"), row("c"))
        await first.ask("Delete", pb.DeleteRequest(collection=ref(), ids=["b"]))
    async with site(tmp_path, parts, killed=True) as second:
        assert await second.ids() == ["a", "c"]
        await second.upsert(row("d"))
        await second.upkeep._round()
        for collection in second.keeper:
            collection.serving.save()
        await second.upsert(row("e"))
    async with site(tmp_path, parts) as third:
        assert await third.ids() == ["a", "c", "d", "e"]


async def test_the_journal_keeps_what_anybody_lacks(docs: Site) -> None:
    disk, applier = docs.parts.disk, applier_of(docs)
    await docs.create("idle")
    await docs.upsert(row("a"))
    await docs.upsert(row("b"))
    await docs.upkeep._look_what_is_saved()
    applier.forget()
    assert disk.forgotten == 0, "neither store nor index has it on disk"
    applier.step()
    await docs.upkeep._look_what_is_saved()
    applier.forget()
    assert disk.forgotten == 0, "the index has not been saved"
    for collection in docs.keeper:
        collection.serving.save()
    await docs.upsert(row("c"))
    await docs.upkeep._look_what_is_saved()
    applier.forget()
    assert disk.forgotten == 2


async def test_the_journal_keeps_what_a_collection_may_need_whose_file_is_damaged(tmp_path: Path) -> None:
    """The store does not get it meanwhile; brought back from a copy, the file has everything again."""
    parts = DictParts()
    async with site(tmp_path, parts, killed=True) as first:
        await first.create()
        await first.create("other")
        await first.upsert(row("a"))
        (path,) = (first.keeper.specs._path(one.spec) for one in first.keeper if one.spec.name == "docs")
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    async with site(tmp_path, parts) as second:
        with pytest.raises(NotFound):
            await second.ids()
        await second.keeper.wait_for_store()
        applier_of(second).step()
        await second.upkeep._look_what_is_saved()
        applier_of(second).forget()
    assert parts.disk.ledger == 0
    path.write_bytes(whole)
    async with site(tmp_path, parts) as third:
        assert await third.ids() == ["a"]


async def test_an_index_that_is_lost_is_made_from_the_store_while_others_serve(tmp_path: Path) -> None:
    parts = DictParts()
    async with site(tmp_path, parts) as first:
        await first.create()
        await first.create("other")
        await first.upsert(row("a"), row("b"))
        await first.ask("Delete", pb.DeleteRequest(collection=ref(), ids=["a"]))
        applier = applier_of(first)
        applier.step()
        for collection in first.keeper:
            collection.serving.save()
        await first.upkeep._look_what_is_saved()
        applier.forget()
        assert parts.disk.forgotten == 2
        await first.upsert(row("c"))
        (lost,) = [one.serving.table.name for one in first.keeper if one.spec.name == "docs"]
    del parts.disk.indexes[lost]
    async with site(tmp_path, parts) as second:
        assert (await second.ask("GetCollection", ref("other"))).rows == 0
        assert await second.ids() == ["b", "c"]


async def test_an_index_that_cannot_be_made_from_the_store_at_once_is_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the journal forgets nothing, and would be full one day."""
    from nearmesh_agent.vectors import keeper

    monkeypatch.setattr(keeper, "_FIRST_WAIT_S", 0.0)
    parts = DictParts()
    async with site(tmp_path, parts) as first:
        await first.create()
        await first.upsert(row("a"))
        applier_of(first).step()
    parts.disk.indexes.clear()
    own = DictStore.scan
    tried: list[str] = []

    def scan(self: DictStore, table: str, **more: Any) -> Any:
        tried.append(table)
        if len(tried) == 1:
            raise Unreachable("Milvus went away")
        return own(self, table, **more)

    monkeypatch.setattr(DictStore, "scan", scan)
    async with site(tmp_path, parts) as second:
        assert await second.ids() == ["a"]
        await second.upsert(row("b"))
        assert second.keeper.whole and len(tried) == 2


async def test_where_the_journal_is_lost_what_is_written_then_is_found_all_the_same(tmp_path: Path) -> None:
    parts = DictParts()
    async with site(tmp_path, parts) as first:
        await first.create()
        await first.upsert(row("a"))
        await first.upsert(row("b"))
    parts.disk.entries.clear()
    async with site(tmp_path, parts, killed=True) as second:
        await second.upsert(row("c"))
        assert await second.ids() == ["a", "b", "c"]
    async with site(tmp_path, parts) as third:
        assert await third.ids() == ["a", "b", "c"]


async def test_words_that_are_lost_are_made_from_the_index(tmp_path: Path) -> None:
    parts = DictParts()
    async with site(tmp_path, parts) as first:
        await first.create()
        await first.upsert(row("a", text="two words"), row("b", text="one"))
    parts.disk.words.clear()
    async with site(tmp_path, parts) as second:
        (collection,) = second.keeper
        assert [one.id for one in collection.serving.lexical.search("words", 5)] == ["a"]
    assert parts.disk.words


async def test_without_its_store_a_site_searches_and_writes_all_the_same(tmp_path: Path) -> None:
    parts = DictParts()
    async with site(tmp_path, parts) as first:
        await first.create()
        await first.upsert(row("a"))
    parts.store_error = Unreachable("Milvus is away")
    async with site(tmp_path, parts) as second:
        await second.upsert(row("b"))
        assert await second.ids() == ["a", "b"]


async def test_a_store_that_opens_half_way_is_closed_before_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nearmesh_agent.vectors import keeper

    monkeypatch.setattr(keeper, "_FIRST_WAIT_S", 0.0)
    said: list[str] = []

    class Once(DictStore):
        def create(self, table: Any) -> None:
            said.append("asked")
            if said == ["asked"]:
                raise Unreachable("Milvus Lite ended")

        def close(self) -> None:
            said.append("closed")

    parts = DictParts()
    async with site(tmp_path, parts) as first:
        await first.create()
    monkeypatch.setattr(parts, "store", lambda: Once(parts.disk.stores[""]))
    async with site(tmp_path, parts, killed=True) as second:
        await second.keeper.wait_for_store()
    assert said == ["asked", "closed", "asked"]


async def test_a_collection_that_waits_for_its_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nearmesh_agent.vectors import keeper

    monkeypatch.setattr(keeper, "OPEN_WITHIN_S", 0.01)
    parts = DictParts()
    async with site(tmp_path, parts) as first:
        await first.create()
    parts.disk.indexes.clear()
    parts.store_error = Unreachable("Milvus is away")
    async with site(tmp_path, parts) as second:
        with pytest.raises(NotReady, match="still being made from the store: Milvus is away"):
            await second.ids()
        with pytest.raises(NotReady, match="the store of this node is not open"):
            await second.create("new")
