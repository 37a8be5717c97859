"""Another embedder: a generation is filled behind the one that serves, beside writes and kills, and takes over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearmesh_agent.vectors.text.filling import FillServicer
from nearmesh_agent.vectors.text.generations import text_hash

from nearmesh.errors import InvalidInput, NotReady, StorageFull, Superseded
from nearmesh.v1 import vector_pb2 as pb
from tests.text_models import vector
from tests.vector_parts import DictParts
from tests.vector_site import Context, Site, ref, site

OLD, NEW = "sha256:old", "sha256:new"
# Vectors of each embedder have a length of their own.
DIMENSIONS = {OLD: 4, NEW: 6}


def bytes_of(text: str, digest: str) -> bytes:
    return vector(text, DIMENSIONS[digest]).astype("<f4").tobytes()


class Texts:
    """A site whose rows have texts, and what its agent does."""

    def __init__(self, found: Site) -> None:
        self.site = found
        self.fill = FillServicer(found.keeper)

    async def create(self) -> None:
        await self.site.create(embedder="encoder", embedder_digest=OLD, dimension=DIMENSIONS[OLD], fields=[])

    async def put(self, digest: str = OLD, **texts: str) -> pb.UpsertResponse:
        rows = [pb.Row(id=name, text=text, vector=bytes_of(text, digest)) for name, text in texts.items()]
        request = pb.UpsertRequest(collection=ref(), rows=rows, embedder_digest=digest)
        return await self.site.ask("Upsert", request)

    async def delete(self, *ids: str) -> None:
        await self.site.ask("Delete", pb.DeleteRequest(collection=ref(), ids=ids))

    async def begin(self, digest: str = NEW) -> pb.Filling:
        request = pb.BeginFillingRequest(
            collection=ref(), embedder="encoder", embedder_digest=digest, dimension=DIMENSIONS[digest]
        )
        return await self.fill.Begin(request, Context())

    async def lacking(self, generation: int = 2, most: int = 2, after: str = "") -> pb.LackingResponse:
        request = pb.LackingRequest(collection=ref(), generation=generation, most=most, after=after)
        return await self.fill.Lacking(request, Context())

    async def bring(self, lacks: pb.LackingResponse, generation: int = 2) -> pb.Filling:
        request = pb.FillRequest(collection=ref(), generation=generation)
        for each in lacks.lacks:
            request.made.add(id=each.id, text_hash=text_hash(each.text), vector=bytes_of(each.text, NEW))
        return await self.fill.Fill(request, Context())

    async def whole(self) -> pb.Filling:
        """As the agent goes on until it serves."""
        after = ""
        for _ in range(100):
            lacks = await self.lacking(after=after)
            state = await self.bring(lacks)
            if state.serves:
                return state
            after = lacks.after
        raise AssertionError("it never became whole")

    async def collection(self) -> pb.Collection:
        return await self.site.ask("GetCollection", ref())

    async def found(self, text: str, digest: str = OLD, **more) -> list[str]:
        request = pb.RetrieveRequest(
            collection=ref(), text=text, vector=bytes_of(text, digest), embedder_digest=digest, **more
        )
        answer = pb.RetrieveResponse.FromString(await self.site.ask("Retrieve", request))
        return [hit.row.id for hit in answer.hits]

    async def save(self) -> None:
        """Indexes to the disk, entries to the store, and the journal forgets what both have."""
        keeper = self.site.keeper
        await keeper.wait_for_store()
        for table in (table for one in keeper for table in (one.serving, one.filling) if table):
            table.save()
        keeper.applier.step()
        await self.site.upkeep._look_what_is_saved()
        keeper.applier.forget()

    async def rows(self) -> dict[str, str]:
        """Text by id; each has the vector of what serves."""
        answer = await self.site.ask("Query", pb.QueryRequest(collection=ref(), with_vectors=True))
        digest = (await self.collection()).embedder_digest
        for row in answer.rows:
            np.testing.assert_allclose(np.frombuffer(row.vector, "<f4"), vector(row.text, DIMENSIONS[digest]))
        return {row.id: row.text for row in answer.rows}


@asynccontextmanager
async def texts(folder: Path, parts: DictParts | None = None, **more) -> AsyncIterator[Texts]:
    async with site(folder, parts, **more) as found:
        yield Texts(found)


@pytest.fixture
async def docs(tmp_path: Path) -> AsyncIterator[Texts]:
    async with texts(tmp_path) as found:
        await found.create()
        await found.put(a="the storm", b="a barn", c="the trains", d="snow")
        yield found


async def test_the_old_generation_serves_until_the_new_one_is_whole(docs: Texts) -> None:
    state = await docs.begin()
    assert (state.generation, state.rows_done, state.rows_total, state.serves) == (2, 0, 4, False)
    state = await docs.bring(await docs.lacking())
    assert (state.rows_done, state.serves) == (2, False)
    told = await docs.collection()
    assert (told.generation, told.embedder_digest, told.next_generation) == (1, OLD, 0.5)
    assert (told.next_embedder, told.next_embedder_digest, told.next_generation_number) == ("encoder", NEW, 2)
    assert (await docs.found("the storm"))[0] == "a"

    assert (await docs.whole()).serves
    told = await docs.collection()
    assert (told.generation, told.embedder_digest, told.dimension, told.next_embedder) == (2, NEW, 6, "")
    assert (await docs.found("the storm", NEW))[0] == "a"
    assert await docs.rows() == {"a": "the storm", "b": "a barn", "c": "the trains", "d": "snow"}


async def test_vectors_of_a_generation_that_serves_no_more_are_refused(docs: Texts) -> None:
    await docs.begin()
    await docs.whole()
    with pytest.raises(Superseded, match="made by sha256:old, and collection 'docs' has those of sha256:new"):
        await docs.found("the storm", OLD)
    with pytest.raises(Superseded, match="made by sha256:old"):
        await docs.put(e="new")
    assert (await docs.put(NEW, e="new")).written == 1


async def test_vectors_of_its_own_that_a_write_brought_before_another_generation_took_over_are_refused(
    docs: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the journal, a vector of another dimension would end the process at each start."""
    (collection,) = docs.site.keeper
    await docs.begin()
    collection.hold(60)
    came, put = asyncio.Event(), collection.put

    async def told(change: Any) -> None:
        came.set()
        await put(change)

    monkeypatch.setattr(collection, "put", told)
    rows = [pb.Row(id="own", text="own", vector=bytes_of("own", OLD))]
    held = asyncio.create_task(docs.site.ask("Upsert", pb.UpsertRequest(collection=ref(), rows=rows)))
    await came.wait()
    assert (await docs.whole()).serves
    with pytest.raises(Superseded, match="another generation of 'docs' has taken over meanwhile"):
        await held
    assert "own" not in await docs.rows()


async def test_what_is_written_meanwhile_is_in_the_new_generation_too(docs: Texts) -> None:
    await docs.begin()
    lacks = await docs.lacking(most=10)
    await docs.put(a="changed", e="added")
    await docs.delete("b")
    state = await docs.bring(lacks)
    assert not state.serves and state.rows_done == 2, "what has another text by now is made again"
    await docs.put(c="changed too")
    await docs.delete("d")
    await docs.whole()
    assert await docs.rows() == {"a": "changed", "c": "changed too", "e": "added"}


async def test_the_last_rows_are_found_without_reading_all_that_are_there(
    docs: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await docs.put(**{f"row-{number:04}": f"text {number}" for number in range(3000)})
    await docs.begin()
    lacks = await docs.lacking(most=1000)
    while lacks.after:
        await docs.bring(lacks)
        lacks = await docs.lacking(most=1000, after=lacks.after)
    (collection,) = docs.site.keeper
    read: list[str] = []
    for table in collection.tables:
        rows = table.index.rows
        monkeypatch.setattr(table.index, "rows", lambda ids, rows=rows, **more: rows(read.extend(ids) or ids, **more))
    last = await docs.lacking(most=16)
    assert len(last.lacks) == 4 and len(read) == 4, "of the others their ids are enough"
    assert {lack.id for lack in last.lacks} == {lack.id for lack in lacks.lacks}


async def test_a_row_that_was_deleted_does_not_come_back_with_its_vector(docs: Texts) -> None:
    await docs.begin()
    lacks = await docs.lacking(most=10)
    await docs.delete("a", "b", "c", "d")
    assert (await docs.bring(lacks)).serves and await docs.rows() == {}


async def test_an_empty_collection_takes_over_at_once(tmp_path: Path) -> None:
    async with texts(tmp_path) as docs:
        await docs.create()
        await docs.begin()
        assert (await docs.bring(await docs.lacking())).serves


async def test_the_same_begin_again_tells_how_far_it_is(docs: Texts) -> None:
    await docs.begin()
    await docs.bring(await docs.lacking())
    assert (await docs.begin()).rows_done == 2
    await docs.whole()
    again = await docs.begin()
    assert again.serves and again.generation == 2


async def test_another_one_begins_when_the_first_is_cancelled(docs: Texts) -> None:
    await docs.begin()
    await docs.bring(await docs.lacking())
    DIMENSIONS["sha256:third"] = 3
    with pytest.raises(InvalidInput, match="generation 2 of 'docs' is being filled by 'encoder' sha256:new; cancel it"):
        await docs.begin("sha256:third")
    state = await docs.fill.Cancel(ref(), Context())
    assert state.serves and state.generation == 1
    with pytest.raises(Superseded, match="generation 2 of 'docs' is not being filled any more"):
        await docs.lacking()
    assert (await docs.begin("sha256:third")).generation == 3, "the journal may have rows of the one that was given up"
    assert (await docs.fill.Cancel(ref(), Context())).generation == 1
    assert (await docs.fill.Cancel(ref(), Context())).generation == 1


async def test_nothing_is_left_of_a_generation_that_served_before(docs: Texts) -> None:
    before = set(docs.site.parts.disk.store)
    await docs.begin()
    await docs.whole()
    disk = docs.site.parts.disk
    assert len(disk.store) == 1 and not before & set(disk.store) and not before & set(disk.indexes)
    assert docs.site.keeper.specs.get("default", "docs").former == ()


async def test_what_cannot_be_filled_is_told(docs: Texts, tmp_path: Path) -> None:
    await docs.put(e="  ")
    await docs.begin()
    with pytest.raises(InvalidInput, match="row 'e' has no text to make a vector of; delete it, or give it one"):
        await docs.lacking(most=10)
    await docs.delete("e")
    assert (await docs.whole()).serves
    async with site(tmp_path / "other") as other:
        await other.create()
        with pytest.raises(InvalidInput, match="collection 'docs' has no embedder: its callers bring the vectors"):
            await Texts(other).begin()


async def test_a_vector_of_the_wrong_length_is_refused(docs: Texts) -> None:
    await docs.begin()
    request = pb.FillRequest(collection=ref(), generation=2)
    request.made.add(id="a", text_hash=text_hash("the storm"), vector=bytes_of("the storm", OLD))
    with pytest.raises(InvalidInput, match="row 'a': its vector has 4 numbers; the collection's dimension is 6"):
        await docs.fill.Fill(request, Context())


@pytest.mark.parametrize("error", [OSError, StorageFull])
async def test_p3_nothing_is_written_where_a_disk_fails_that_may_say_which_generation_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    parts = DictParts()
    async with texts(tmp_path, parts, killed=True) as docs:
        await docs.create()
        await docs.put(a="the storm")
        await docs.begin()
        put = docs.site.keeper.specs.put

        def fails(spec: object) -> None:
            put(spec)
            raise error("the folder was not synced")

        monkeypatch.setattr(docs.site.keeper.specs, "put", fails)
        with pytest.raises(error, match="not synced"):
            await docs.bring(await docs.lacking())
        with pytest.raises(NotReady, match="is opened anew"):
            await docs.put(b="would be lost")
    async with texts(tmp_path, parts) as docs:
        assert (await docs.collection()).embedder_digest == NEW and await docs.rows() == {"a": "the storm"}


@pytest.mark.parametrize("act", ["put", "delete"])
async def test_p3_a_power_cut_in_the_middle_of_a_write_leaves_nothing_old_in_the_next_generation(
    tmp_path: Path, act: str
) -> None:
    parts = DictParts()
    async with texts(tmp_path, parts, killed=True) as docs:
        await docs.create()
        await docs.put(a="the storm", b="a barn")
        await docs.begin()
        await docs.bring(await docs.lacking(most=1))
        await docs.save()
        await (docs.put(a="changed") if act == "put" else docs.delete("a"))
    # The end of the journal is torn: the last entry of what was written together was not on the disk.
    parts.disk.entries.pop()
    async with texts(tmp_path, parts) as docs:
        here = await docs.rows()
        await docs.whole()
        assert await docs.rows() == here and "b" in here


@pytest.mark.parametrize("seed", range(6))
async def test_p3_kills_at_any_moment_lose_nothing_and_change_the_generation_once(tmp_path: Path, seed: int) -> None:
    """Whatever was acknowledged is there, with the vectors of what serves; what was deleted stays so."""
    draw, parts, here = random.Random(seed), DictParts(), {}
    async with texts(tmp_path, parts, killed=True) as docs:
        await docs.create()
    switches = 0
    for _ in range(8):
        async with texts(tmp_path, parts, killed=True) as docs:
            told = await docs.collection()
            serving = told.embedder_digest
            assert await docs.rows() == here, "acknowledged before the kill"
            if not switches and told.next_embedder == "":
                await docs.begin()
            for _ in range(draw.randrange(1, 6)):
                name, text = draw.choice("abcdef"), f"text {draw.randrange(100)}"
                match draw.choice(["put", "put", "delete", "fill", "save"]):
                    case "put":
                        await docs.put(serving, **{name: text})
                        here[name] = text
                    case "delete":
                        await docs.delete(name)
                        here.pop(name, None)
                    case "fill" if not switches:
                        state = await docs.bring(await docs.lacking(most=3))
                        if state.serves:
                            switches, serving = 1, NEW
                    case "save":
                        await docs.save()
    async with texts(tmp_path, parts) as docs:
        if not switches:
            await docs.whole()
        assert await docs.rows() == here
        assert (await docs.collection()).generation == 2
