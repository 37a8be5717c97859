"""Collections that several sites have: each takes writes and deletes, and all come to have the same."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from copy import deepcopy
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nearmesh_agent.vectors.collections import Specs

from nearmesh.errors import InvalidInput, NotFound, PermissionDenied, Superseded, Unreachable
from nearmesh.v1 import vector_pb2 as pb
from tests.vector_site import row, site
from tests.vector_sites import From, LedgerParts, Place, meet, places

REF = pb.CollectionRef(name="docs")


async def update(place: Place, **more: Any) -> None:
    await place.site.ask("UpdateCollection", pb.UpdateCollectionRequest(collection=REF, **more))


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
        assert right.ledger.tombstones((await _identity(right)), ["2"])


async def _identity(place: Place) -> str:
    return (await place.site.keeper.get("default", "docs")).identity


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
            identity = await _identity(place)
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
        request = pb.DeletedRequest(identity=await _identity(left), ids=["1", "2", "3", "4"])
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


async def test_a_drop_is_everywhere_also_for_who_comes_later(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "middle", "right") as (left, middle, right):
        await left.site.create(replicate_to=["middle", "right"])
        await meet([left, middle, right])
        await middle.site.ask("DropCollection", REF)
        await left.offered(middle)
        # It heard of it from one that was told.
        await right.offered(left)
        assert (left.names(), middle.names(), right.names()) == ([], [], [])
        # One of the same name is another one.
        await right.site.create(replicate_to=["left"])
        await meet([left, middle, right])
        assert (left.names(), middle.names()) == (["docs"], [])


async def test_a_site_that_has_not_heard_that_it_is_to_have_it_no_more_brings_it_not_back(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await left.write("1")
        await meet([left, right])
        await update(left, replicate_to=[], set_replicate_to=True)
        await left.site.ask("DropCollection", REF)
        await left.offered(right)
        assert (left.names(), right.names()) == ([], ["docs"])
        await right.offered(left)
        assert right.names() == []


async def test_a_drop_that_a_kill_cut_short_is_finished(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await left.site.create("other")
        await meet([left, right])
        left.across.drops((await left.site.keeper.get("default", "docs")).spec)
        task = asyncio.create_task(left.across.run())
        try:
            async with asyncio.timeout(5):
                while True:
                    if left.names() == ["other"]:
                        break
                    await asyncio.sleep(0.005)
        finally:
            task.cancel()
        await right.offered(left)
        assert right.names() == []


async def test_what_is_written_after_a_kill_in_the_middle_of_an_update_is_sent(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create()
        await left.write("1")
        collection = await left.site.keeper.get("default", "docs")
        # Its spec is on the disk, and nothing else.
        await left.site.keeper.update(
            collection, lambda spec: left.across.stamped(replace(spec, replicate_to=("right",)))
        )
        await left.across._look_after(collection)
        await meet([left, right])
        await left.write("2")
        await meet([left, right])
        assert await right.texts() == {"1": "", "2": ""}


async def test_p9_a_site_that_is_to_have_it_no_more_gives_it_up(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "middle", "right") as (left, middle, right):
        await left.site.create(replicate_to=["middle", "right"])
        await left.write("1")
        await meet([left, middle, right])
        await update(left, replicate_to=["middle"], set_replicate_to=True)
        await right.offered(left)
        assert right.names() == []
        await meet([left, middle, right])
        assert (left.names(), middle.names(), right.names()) == (["docs"], ["docs"], [])
        await update(left, replicate_to=[], set_replicate_to=True)
        await middle.offered(left)
        assert (left.names(), middle.names()) == (["docs"], [])


async def test_a_site_that_is_named_again_before_its_first_copy_is_cleared_away_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create(replicate_to=["right"])
        await left.write("1", "2")
        await meet([left, right])
        keeper, identity = right.site.keeper, await _identity(right)
        assert keeper.store and keeper.applier

        def away(table: str) -> None:
            raise Unreachable("the store is away")

        # Tables stay, and the journal keeps what was written to them.
        monkeypatch.setattr(keeper.store, "drop", away)
        await update(left, replicate_to=[], set_replicate_to=True)
        await right.offered(left)
        assert (right.names(), len(keeper.specs.dropped)) == ([], 1)
        await left.delete("1")
        await update(left, replicate_to=["right"], set_replicate_to=True)
        await meet([left, right])
        monkeypatch.undo()
        assert await right.texts() == {"2": ""}
        keeper.applier.step()  # type: ignore[attr-defined]
        table = keeper.specs.get("default", "docs").table.name
        assert [row.id for rows in keeper.store.scan(table) for row in rows] == ["2"]
        await keeper._clear_away(keeper.store)
        assert (right.names(), keeper.specs.dropped) == (["docs"], [])
        assert right.ledger.tombstones(identity, ["1"])
        await right.write("3")
        await meet([left, right])
        assert await left.texts() == await right.texts() == {"2": "", "3": ""}
        (path,) = (tmp_path / "node-1" / "collections").iterdir()
        assert Specs(path.parent).get("default", "docs").incarnation
        # Nobody takes the place of one that cannot be read, nor forgets what it knew of.
        path.write_bytes(b"")
        keeper.specs = Specs(path.parent)
        keeper._collections.clear()
        assert "cannot be read" in (await right.offered(left)).refused[0].why
        assert right.ledger.tombstones(identity, ["1"])


async def test_p9_regions_bind_where_it_is_kept(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right", regions=("eu", "us")) as (left, right):
        with pytest.raises(InvalidInput, match="regions us leave out 'eu'"):
            await left.site.create(regions=["us"])
        await left.site.create(replicate_to=["right"], regions=["eu"])
        await left.write("1")
        await meet([left, right])
        assert right.names() == []
        assert (await left.collection()).replicas[0].detail == "residency: its regions leave out us"
        identity = await _identity(left)
        with pytest.raises(PermissionDenied, match="is not for site 'right'"):
            await _ask_for(left, right, identity)
        await update(left, regions=["eu", "us"], set_regions=True)
        await meet([left, right])
        assert await right.texts() == {"1": ""}
        await update(left, regions=["eu"], set_regions=True)
        await right.offered(left)
        assert right.names() == []


async def test_p9_regions_that_were_narrowed_stay_so_whatever_else_is_changed_elsewhere(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right", regions=("eu", "us")) as (left, right):
        await left.site.create(replicate_to=["right"])
        await meet([left, right])
        await update(left, regions=["eu"], set_regions=True)
        await update(right, description="of both")
        # The later change knew nothing of the earlier one.
        await left.offered(right)
        found = await left.collection()
        assert (list(found.regions), found.description) == (["eu"], "of both")
        await right.offered(left)
        assert right.names() == []


async def test_p9_rows_of_a_site_that_a_rule_binds_go_through_no_other_site_either(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "middle", "right", regions=("eu", "asia", "us")) as (left, middle, right):
        await left.site.create(replicate_to=["middle", "right"])
        await left.write("1")
        await middle.hear(left)
        # A rule of eu leaves out us, and none of asia does.
        right.here = replace(right.here, barred=frozenset({"left"}))
        assert not (await right.offered(middle)).followed
        with pytest.raises(PermissionDenied, match="residency: what is of left stays out of region 'us'"):
            await _ask_for(middle, right, await _identity(middle))
        found = {one.site: one.detail for one in (await middle.collection()).replicas}
        assert found["right"] == "residency: a rule that binds left leaves out us"
        right.here = replace(right.here, barred=frozenset())
        await meet([left, middle, right])
        assert await right.texts() == {"1": ""}


async def _ask_for(place: Place, peer: Place, identity: str) -> None:
    async def asked() -> Any:
        yield pb.ChangesRequest(identity=identity)

    async for _ in place.across.giving.Changes(asked(), From(peer.here)):
        pass


async def test_p9_a_collection_of_one_site_is_shown_to_no_other(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create()
        await left.write("1")
        assert not (await left.across.giving.Offered(pb.OfferedRequest(site="right"), From(right.here))).offers
        with pytest.raises(PermissionDenied):
            await _ask_for(left, right, await _identity(left))
        with pytest.raises(PermissionDenied, match="is at site 'right', not at 'left'"):
            await left.across.giving.Offered(pb.OfferedRequest(site="left"), From(right.here))


@pytest.mark.parametrize(
    ("config", "why"), [({}, "another collection of that name"), ({"allow": ("team",)}, "namespace 'default' is not")]
)
async def test_why_a_site_does_not_take_a_collection_shows_where_it_was_created(
    tmp_path: Path, config: dict[str, Any], why: str
) -> None:
    async with places(tmp_path / "1", "left") as (left,), places(tmp_path / "2", "right", **config) as (right,):
        right.here = right.across._here = type(right.here)(node="node-9", site="right", region="europe-west1")
        await left.site.create(replicate_to=["right"])
        if not config:
            await right.site.create()
        for _ in range(2):
            assert not (await right.offered(left)).followed
        (replica,) = (await left.collection()).replicas
        assert why in replica.detail


async def test_nodes_of_one_site_have_it_both_where_the_site_is_named(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "left", "right") as (one, other, right):
        await one.site.create(replicate_to=["right"])
        await meet([one, other, right])
        assert (other.names(), right.names()) == ([], ["docs"])
        await update(one, replicate_to=["right", "left"], set_replicate_to=True)
        await one.write("1")
        await meet([one, other, right])
        assert await other.texts() == await right.texts() == {"1": ""}


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
        request = pb.TakeRequest(identity=await _identity(left), changes=changes)
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
        asked.put_nowait(pb.ChangesRequest(identity=await _identity(left), most_bytes=20_000))

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
