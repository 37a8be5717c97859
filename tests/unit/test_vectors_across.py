"""Collections that several sites have: each takes writes and deletes, and all come to have the same."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearmesh.errors import InvalidInput, NotFound, Superseded
from nearmesh.v1 import vector_pb2 as pb
from tests.vector_site import row, site
from tests.vector_sites import REF, From, LedgerParts, Place, identity_of, meet, places, update


async def test_what_is_written_and_deleted_at_one_site_is_so_at_the_other(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await left.write("1", "2", text="left")
        await meet([left, right])
        assert await right.texts() == {"1": "left", "2": "left"}
        await right.write("3", text="right")
        await right.delete("1")
        await meet([left, right])
        assert await left.texts() == await right.texts() == {"2": "left", "3": "right"}
        found = await right.collection()
        assert (found.site, list(found.replicate_to), found.dimension) == ("left", ["right"], 2)
        assert [field.name for field in found.fields] == ["lang", "year"]


async def test_a_row_that_names_no_source_keeps_its_hash_and_part(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        mine = row("1")
        mine.origin.hash, mine.origin.part = "h", 3
        await left.site.upsert(mine)
        await meet([left, right])
        for place in (left, right):
            (found,) = (await place.site.ask("Fetch", pb.FetchRequest(collection=REF, ids=["1"]))).rows
            assert (found.origin.hash, found.origin.part) == ("h", 3)


async def test_nothing_is_sent_twice_nor_back_to_where_it_came_from(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        for _ in range(2):
            await meet([left, right])
        await left.write("1", "2")
        assert await right.hear(left) == 2
        assert (await right.hear(left), await left.hear(right)) == (0, 0)


async def test_rows_from_before_it_was_replicated_come_too(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create()
        await left.write("1", "2")
        await left.delete("2")
        assert (await right.hear(left), right.names()) == (0, [])
        await update(left, replicate_to=["right"], set_replicate_to=True)
        await meet([left, right])
        assert await right.texts() == {"1": ""}
        assert right.ledger.tombstones((await identity_of(right)), ["2"])


async def test_a_delete_wins_over_a_write_that_did_not_know_of_it(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await left.write("1", text="before")
        await meet([left, right])
        await left.delete("1")
        await right.write("1", text="meanwhile")
        await meet([left, right])
        assert await left.texts() == await right.texts() == {}
        await right.write("1", text="after")
        await meet([left, right])
        assert await left.texts() == await right.texts() == {"1": "after"}


async def test_a_write_over_one_that_knew_of_a_delete_counts_when_the_delete_is_forgotten(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await left.write("1", text="before")
        await left.delete("1")
        await left.write("1", text="again")
        await meet([left, right])
        for place in (left, right):
            identity = await identity_of(place)
            assert place.ledger.forget(identity, 1 << 62, place.ledger.last(identity)) == 1
        await left.write("1", text="after")
        await meet([left, right])
        assert await left.texts() == await right.texts() == {"1": "after"}


async def test_a_delete_of_a_row_that_has_not_come_yet_wins_as_well(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await meet([left, right])
        await right.write("1")
        assert (await left.delete("1")).deleted == 0
        await meet([left, right])
        assert await left.texts() == await right.texts() == {}


async def test_what_is_deleted_here_is_told_until_it_is_written_again(tmp_path: Path) -> None:
    async with places(tmp_path, "left") as (left,):
        await left.site.create()
        await left.write("1", "2", "3")
        await left.delete("1", "2")
        await left.write("2")
        request = pb.DeletedRequest(identity=await identity_of(left), ids=["1", "2", "3", "4"])
        assert (await left.across.taking.Deleted(request, None)).ids == ["1"]
        assert not (await left.across.taking.Deleted(pb.DeletedRequest(identity="none", ids=["1"]), None)).ids


async def test_changes_go_on_through_a_site_where_two_never_meet(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "middle", "right") as (left, middle, right):
        await left.site.create(replicate_to=["middle", "right"])
        await left.write("1", "2")
        await middle.hear(left)
        await right.hear(middle)
        await right.delete("1")
        await middle.hear(right)
        await left.hear(middle)
        assert await left.texts() == await right.texts() == {"2": ""}


async def test_there_is_a_receipt_of_every_site_for_a_delete(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await left.write("1", "2")
        await meet([left, right])
        change = (await left.delete("1")).change
        await left.delete("2")
        (pending,) = (await left.site.ask("ListReceipts", pb.ListReceiptsRequest(collection=REF, id="1"))).receipts
        assert [(one.site, one.acknowledged_at_s > 0) for one in pending.sites] == [("left", True), ("right", False)]
        await meet([left, right])
        found = (await left.site.ask("ListReceipts", pb.ListReceiptsRequest(collection=REF))).receipts
        assert [one.id for one in found] == ["2", "1"]
        assert found[1].change == change
        before = pb.ListReceiptsRequest(collection=REF, before=found[0].change)
        assert [one.id for one in (await left.site.ask("ListReceipts", before)).receipts] == ["1"]
        assert all(one.acknowledged_at_s >= receipt.deleted_at_s - 1 for receipt in found for one in receipt.sites)
        # The other site knows of both, too.
        (there,) = (await right.site.ask("ListReceipts", pb.ListReceiptsRequest(collection=REF, id="1"))).receipts
        assert {one.site for one in there.sites if one.acknowledged_at_s} == {"left", "right"}


async def test_how_far_behind_a_site_is_shows(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await left.write("1", "2")
        (before,) = (await left.collection()).replicas
        assert (before.site, before.lag_rows, before.connected) == ("right", 2, False)
        assert before.detail == "no node of it has asked for it yet"
        await meet([left, right])
        await left.write("3")
        (after,) = (await left.collection()).replicas
        assert (after.lag_rows, after.acknowledged, after.detail) == (1, 2, "not connected")
        assert (await left.site.create("other")).replicas == []


async def test_a_node_that_lost_its_disk_gets_everything_back_and_gives_what_is_new(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await left.write("1", "2", "3")
        await left.delete("3")
        await meet([left, right])
        async with places(tmp_path / "new", "left") as (again,):
            await meet([again, right])
            assert await again.texts() == {"1": "", "2": ""}
            await again.write("4")
            await again.delete("1")
            await meet([again, right])
            assert await again.texts() == await right.texts() == {"2": "", "4": ""}


async def test_a_node_whose_disk_was_brought_back_from_before_comes_to_have_the_same_again(tmp_path: Path) -> None:
    folder, backup = tmp_path / "node-0", tmp_path / "backup"
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await left.write("1", "2")
        await meet([left, right])
        left.ledger.save(left.site.keeper.journal.position)
        shutil.copytree(folder, backup)
        disk = deepcopy(left.site.parts.disk)
        await left.write("3", text="lost and known there")
        await left.delete("1")
        await left.write("4")
        await meet([left, right])
        parts = LedgerParts(backup, "node-0")
        parts.disk = disk
        async with site(backup, parts) as found:
            again = Place(left.here, found)
            assert await again.texts() == {"1": "", "2": ""}
            await again.write("5")
            await meet([again, right])
            assert (
                await again.texts() == await right.texts() == {"2": "", "3": "lost and known there", "4": "", "5": ""}
            )
            await again.write("6")
            assert await right.hear(again) == 1


async def test_what_came_over_before_another_generation_took_over_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with places(tmp_path, "left") as (left,):
        await left.site.create()
        await left.site.create("longer", dimension=3)
        collection, longer = [await left.site.keeper.get("default", name) for name in ("docs", "longer")]
        put, serving = collection.put, collection.serving

        async def late(change: Any) -> None:
            monkeypatch.setattr(collection, "serving", longer.serving)
            await put(change)

        monkeypatch.setattr(collection, "put", late)
        change = pb.Change(id="1", written=5, row=pb.Row(id="1", vector=b"\0\0\x80?" * 2))
        request = pb.TakeRequest(identity=collection.identity, changes=pb.ChangesResponse(changes=[change], last=1))
        with pytest.raises(Superseded, match="another generation of 'docs' has taken over meanwhile"):
            await left.across.taking.Take(request, None)
        assert not (collection.broken or serving.index.size or longer.serving.index.size)


async def test_what_no_right_clock_has_stamped_is_refused(tmp_path: Path) -> None:
    async with places(tmp_path, "left") as (left,):
        await left.site.create(replicate_to=["right"])
        changes = pb.ChangesResponse(changes=[pb.Change(id="1", deleted=1 << 62)], last=1)
        request = pb.TakeRequest(identity=await identity_of(left), changes=changes)
        with pytest.raises(InvalidInput, match="ahead of this node's clock"):
            await left.across.taking.Take(request, None)
        with pytest.raises(NotFound):
            await left.across.taking.Take(pb.TakeRequest(identity="none"), None)
        wrong = pb.Change(id="1", written=5, row=pb.Row(id="1", vector=b"1234"))
        request.changes.CopyFrom(pb.ChangesResponse(changes=[wrong], last=1))
        with pytest.raises(InvalidInput):
            await left.across.taking.Take(request, None)
        wrong.row.vector, wrong.written_at_s = row("1").vector, float("nan")
        for changes, said in (
            (pb.ChangesResponse(changes=[wrong]), "which is no moment"),
            (pb.ChangesResponse(last=1 << 63), "which no node has"),
            (pb.ChangesResponse(log="x" * 65), "which no node has"),
        ):
            request.changes.CopyFrom(changes)
            with pytest.raises(InvalidInput, match=said):
                await left.across.taking.Take(request, None)


async def test_large_changes_come_in_several_messages(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await left.write(*map(str, range(50)), text="x" * 1000)
        await meet([left, right])
        asked: asyncio.Queue[Any] = asyncio.Queue()
        asked.put_nowait(pb.ChangesRequest(identity=await identity_of(left), most_bytes=20_000))

        async def each() -> Any:
            while True:
                yield await asked.get()

        found, last = [], -1
        changes = left.across.giving.Changes(each(), From(right.here))
        while last < 50:
            message = await anext(changes)
            assert message.ByteSize() < 25_000
            found += [one.id for one in message.changes]
            last = message.last
            asked.put_nowait(pb.ChangesRequest(acknowledged=last))
        await changes.aclose()
        assert sorted(found, key=int) == [str(n) for n in range(50)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 2), st.integers(0, 4)),
        st.tuples(st.just("delete"), st.integers(0, 2), st.integers(0, 4)),
        st.tuples(st.just("hear"), st.integers(0, 2), st.integers(0, 2)),
    ),
    max_size=14,
)


def test_sites_come_to_have_the_same_whatever_happened_while_they_were_apart(tmp_path: Path) -> None:
    async def begin(stack: AsyncExitStack) -> list[Place]:
        found = await stack.enter_async_context(places(tmp_path, "left", "middle", "right"))
        await found[0].site.create(replicate_to=["middle", "right"])
        await meet(found)
        return found

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        found = runner.run(begin(stack))
        histories = count()

        # The sites stay; each history is of rows of its own.
        @settings(max_examples=30, deadline=None)
        @given(STEPS)
        def converge(steps: list[tuple[str, int, int]]) -> None:
            runner.run(_history(found, f"{next(histories)}-", steps))

        converge()
        runner.run(stack.aclose())


async def _history(found: list[Place], prefix: str, steps: list[tuple[str, int, int]]) -> None:
    for number, (what, at, other) in enumerate(steps):
        here, name = found[at], f"{prefix}{other}"
        if what == "write":
            await here.write(name, text=f"{at}-{number}")
        elif what == "delete":
            await here.delete(name)
            assert name not in await here.texts()
        elif at != other:
            await _hears(here, found[other], prefix)
    await meet(found)
    texts = [await one.texts() for one in found]
    assert texts[0] == texts[1] == texts[2]


async def _hears(here: Place, other: Place, prefix: str) -> None:
    collection = await here.site.keeper.get("default", "docs")
    names = [f"{prefix}{number}" for number in range(5)]
    gone = here.ledger.tombstones(collection.identity, names)
    before = {row.id for row in collection.serving.index.rows(names)}
    await here.hear(other)
    for back in collection.serving.index.rows(gone.keys() - before):
        # What it has acknowledged to be deleted comes back with a write alone that knew of it.
        assert back.clock.written_after >= gone[back.id]
