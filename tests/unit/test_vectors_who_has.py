"""Who is to have a collection: sites and regions that are named, named no more and named again; drops."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nearmesh_agent.vectors.collections import Specs

from nearmesh.errors import InvalidInput, PermissionDenied, Unreachable
from nearmesh.v1 import vector_pb2 as pb
from tests.vector_sites import REF, From, ask_for, identity_of, meet, places, update


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
        keeper, identity = right.site.keeper, await identity_of(right)
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
        identity = await identity_of(left)
        with pytest.raises(PermissionDenied, match="is not for site 'right'"):
            await ask_for(left, right, identity)
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
            await ask_for(middle, right, await identity_of(middle))
        found = {one.site: one.detail for one in (await middle.collection()).replicas}
        assert found["right"] == "residency: a rule that binds left leaves out us"
        right.here = replace(right.here, barred=frozenset())
        await meet([left, middle, right])
        assert await right.texts() == {"1": ""}


async def test_p9_a_collection_of_one_site_is_shown_to_no_other(tmp_path: Path) -> None:
    async with places(tmp_path, "left", "right") as (left, right):
        await left.site.create()
        await left.write("1")
        assert not (await left.across.giving.Offered(pb.OfferedRequest(site="right"), From(right.here))).offers
        with pytest.raises(PermissionDenied):
            await ask_for(left, right, await identity_of(left))
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
