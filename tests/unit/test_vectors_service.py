"""VectorService over parts that are dicts: what callers see of writes, searches, limits, quotas and a kill."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nearmesh_agent.vectors import answers, collections, limits
from nearmesh_agent.vectors.changes import Delete
from nearmesh_agent.vectors.config import Quota

from nearmesh.errors import (
    AlreadyExists,
    InvalidInput,
    MeshError,
    NotFound,
    NotReady,
    PermissionDenied,
    QuotaExceeded,
    StorageFull,
    TooLarge,
    Unreachable,
)
from nearmesh.v1 import vector_pb2 as pb
from tests.vector_parts import DictApplier, DictParts, DictStore
from tests.vector_site import Context, Site, bytes_of, ref, row, site


@pytest.fixture(params=["memory", "engine that sees nothing yet", "engine that sees all"])
async def either(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """The same by an index of our own and by the store's engine, whose gaps the journal fills."""
    engine = request.param != "memory"
    async with site(tmp_path, DictParts(engine=engine), index="engine" if engine else "memory") as found:
        await found.create()
        found.takes_over = request.param.endswith("all")
        yield found


@pytest.fixture
async def docs(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as found:
        await found.create()
        yield found


async def test_rows_are_found_by_the_nearest_first_and_with_what_they_say(either: Site) -> None:
    written = await either.upsert(row("a", 1, 0, text="A", lang="en"), row("b", 1, 1), row("c", 0, 1, lang="en"))
    assert (written.written, written.unchanged) == (3, 0)
    found = await either.search([1, 0.1])
    assert [hit.row.id for hit in found.hits] == ["a", "b", "c"]
    first = found.hits[0]
    assert (first.row.text, first.row.fields["lang"].string, first.node, first.site) == ("A", "en", "node-a", "site-a")
    assert first.score == pytest.approx(0.995, abs=1e-3) and not first.row.vector
    assert [hit.row.id for hit in (await either.search([1, 0.1], k=1, with_vectors=True)).hits] == ["a"]
    found = await either.search([1, 0.1], filter='lang == "en"', exact=True)
    assert [hit.row.id for hit in found.hits] == ["a", "c"]
    assert found.way == ("exact" if either.keeper.config.index == "memory" else "engine")


async def test_the_same_rows_again_change_nothing(either: Site) -> None:
    await either.upsert(row("a"), row("b"))
    before = either.keeper.journal.position
    again = await either.upsert(row("a"), row("b"))
    assert (again.written, again.unchanged, either.keeper.journal.position) == (0, 2, before)
    once = await either.upsert(row("a", text="new"), row("c"), row("c", text="last"))
    assert (once.written, once.unchanged) == (2, 0)
    (fetched,) = (await either.ask("Fetch", pb.FetchRequest(collection=ref(), ids=["c", "nope"]))).rows
    assert (fetched.id, fetched.text) == ("c", "last")


async def test_deletes_by_id_by_filter_and_by_both(either: Site) -> None:
    await either.upsert(*(row(name, lang=lang) for name, lang in zip("abcdef", ["en", "de"] * 3, strict=True)))

    async def delete(**more: Any) -> int:
        answer: pb.DeleteResponse = await either.ask("Delete", pb.DeleteRequest(collection=ref(), **more))
        return answer.deleted

    assert await delete(filter='lang == "de"', dry_run=True) == 3
    assert await delete(ids=["a", "a", "nope"]) == 1
    assert await delete(ids=["b", "c"], filter='lang == "de"') == 1
    assert await either.ids() == ["c", "d", "e", "f"]
    assert await delete(filter='lang == "de"') == 2
    assert await either.ids() == ["c", "e"]
    with pytest.raises(InvalidInput, match="drop the collection"):
        await delete()
    assert await delete(ids=["a"]) == 0


async def test_nobody_is_told_that_nothing_was_deleted_where_that_is_not_known(either: Site) -> None:
    with pytest.raises(NotReady, match="who has which deletes is not known yet"):
        await either.ask("ListReceipts", pb.ListReceiptsRequest(collection=ref()))


async def test_no_answer_is_larger_than_it_may_be(either: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{n}" for n in range(6)]
    await either.upsert(*(row(name, text="x" * 100) for name in names))
    monkeypatch.setattr(answers, "MAX_ANSWER_BYTES", 300)
    monkeypatch.setattr(answers, "_AT_ONCE", 1)
    request = pb.QueryRequest(collection=ref())
    first = await either.ask("Query", request)
    assert ([one.id for one in first.rows], first.next_page_token) == (names[:3], "2")
    request.page_token = "2"
    rest = await either.ask("Query", request)
    assert ([one.id for one in rest.rows], rest.next_page_token) == (names[3:], "")
    ids = ["nope", "5", "4", "3", "2"]
    part = await either.ask("Fetch", pb.FetchRequest(collection=ref(), ids=ids, in_parts=True))
    assert ([one.id for one in part.rows], part.looked_up) == (["5", "4", "3"], 4)
    whole = await either.ask("Fetch", pb.FetchRequest(collection=ref(), ids=ids[:3], in_parts=True))
    assert whole.looked_up == 3
    with pytest.raises(TooLarge, match="the 5 rows take more than 300 bytes; ask for fewer at a time"):
        await either.ask("Fetch", pb.FetchRequest(collection=ref(), ids=ids))
    with pytest.raises(TooLarge, match="the 6 rows take more than 300 bytes"):
        await either.search([1, 0])
    assert len((await either.search([1, 0], k=2)).hits) == 2
    monkeypatch.setattr(limits, "MAX_ANSWER_BYTES", 300)
    words = pb.RetrieveRequest(collection=ref(), text="x", vector=bytes_of(1, 0))
    with pytest.raises(TooLarge, match="the 6 rows take more"):
        await either.ask("Retrieve", words)


async def test_a_long_filter_is_taken_and_not_kept(either: Site) -> None:
    await either.upsert(row("a", lang="x" * 5000), row("b", lang="en"))
    long, short = f'lang == "{"x" * 5000}"', 'lang == "en"'
    assert (await either.ids(filter=long), await either.ids(filter=short)) == (["a"], ["b"])
    assert [text for text, _ in either.servicer._filters] == [short]
    assert (await either.ask("Count", pb.CountRequest(collection=ref(), filter=long))).rows == 1
    assert (await either.ask("Delete", pb.DeleteRequest(collection=ref(), filter=long))).deleted == 1


async def test_pages_counts_and_sources(either: Site) -> None:
    await either.upsert(*(row(f"{n}", lang="en" if n % 2 else "de", source=f"s{n % 2}") for n in range(6)))
    found, token = [], ""
    while True:
        answer = await either.ask("Query", pb.QueryRequest(collection=ref(), page_size=4, page_token=token))
        found.append([one.id for one in answer.rows])
        if not (token := answer.next_page_token):
            break
    assert found == [["0", "1", "2", "3"], ["4", "5"]]
    assert (await either.ask("Count", pb.CountRequest(collection=ref()))).rows == 6
    assert (await either.ask("Count", pb.CountRequest(collection=ref(), filter='lang == "en"'))).rows == 3
    sources = (await either.ask("ListSources", pb.ListSourcesRequest(collection=ref()))).sources
    assert [(one.name, one.parts_here) for one in sources] == [("s0", 3), ("s1", 3)]
    await either.ask("Delete", pb.DeleteRequest(collection=ref(), ids=["0", "2"]))
    await either.upsert(row("4", source="s2"))
    sources = (await either.ask("ListSources", pb.ListSourcesRequest(collection=ref()))).sources
    assert [(one.name, one.parts_here) for one in sources] == [("s1", 3), ("s2", 1)]


@pytest.mark.parametrize(
    ("method", "request_", "said"),
    [
        ("Search", pb.SearchRequest(collection=ref(), vector=b"1234"), "has 1 numbers"),
        ("Search", pb.SearchRequest(collection=ref(), vector=b"\0" * 8, k=10**6), "k is 1000000"),
        ("Search", pb.SearchRequest(collection=ref(), vector=bytes_of(1, 1), filter="x; drop"), "no filter"),
        ("Search", pb.SearchRequest(collection=ref("nope"), vector=bytes_of(1, 1)), "no collection 'nope'"),
        ("Search", pb.SearchRequest(), "no collection is named"),
        ("Query", pb.QueryRequest(collection=ref(), page_size=5000), "page_size is 5000"),
        ("Fetch", pb.FetchRequest(collection=ref(), ids=["a"] * 10_001), "10001 ids in one request"),
        ("Upsert", pb.UpsertRequest(collection=ref(), rows=[pb.Row(id="a")]), "row 'a': its vector has 0 numbers"),
        ("Upsert", pb.UpsertRequest(collection=ref(), rows=[pb.Row()] * 10_001), "10001 rows"),
        ("Delete", pb.DeleteRequest(collection=ref(), ids=[""]), "has 0 bytes"),
        ("CreateCollection", pb.CreateCollectionRequest(collection=ref("x")), "dimension 0"),
        ("CreateCollection", pb.CreateCollectionRequest(collection=ref("a b"), dimension=2), "collection 'a b'"),
        (
            "CreateCollection",
            pb.CreateCollectionRequest(collection=ref("x"), dimension=2, embedder_digest="x" * 999),
            "embedder_digest 'x+'... has 999 characters",
        ),
        (
            "CreateCollection",
            pb.CreateCollectionRequest(collection=ref("x"), dimension=2, replicate_to=["No"]),
            "site 'No'",
        ),
        (
            "CreateCollection",
            pb.CreateCollectionRequest(collection=ref("x"), dimension=2, language="klingon"),
            "language 'klingon' is none of arabic, .*, none",
        ),
    ],
)
async def test_what_cannot_be_done_is_told_with_the_value(either: Site, method: str, request_: Any, said: str) -> None:
    with pytest.raises(MeshError, match=said):
        await either.ask(method, request_)


@pytest.mark.parametrize(("asked", "found"), [({}, "english"), ({"language": "spanish"}, "spanish")])
async def test_a_collection_has_the_language_that_it_was_made_with(tmp_path: Path, asked: Any, found: str) -> None:
    parts = DictParts()
    async with site(tmp_path, parts) as first:
        assert (await first.create(**asked)).language == found
    async with site(tmp_path, parts) as again:
        assert (await again.ask("GetCollection", ref())).language == found
        (collection,) = again.keeper
        assert collection.serving.table.language == found


async def test_namespaces_see_their_own_alone(docs: Site) -> None:
    await docs.create(reach="acme")
    await docs.upsert(row("mine"), reach="acme")
    assert await docs.ids() == []
    with pytest.raises(PermissionDenied, match="reaches the namespace 'acme', not 'default'"):
        await docs.ask("GetCollection", ref(namespace="default"), "acme")

    async def listed(reach: str, namespace: str = "") -> list[str]:
        answer = await docs.ask("ListCollections", pb.ListCollectionsRequest(namespace=namespace), reach)
        return [f"{one.collection.namespace}/{one.collection.name}:{one.rows}" for one in answer.collections]

    assert await listed("default") == ["default/docs:0"]
    assert await listed("acme", "acme") == ["acme/docs:1"]
    assert await listed("*", "*") == ["acme/docs:1", "default/docs:0"]
    with pytest.raises(PermissionDenied):
        await listed("acme", "*")
    with pytest.raises(PermissionDenied):
        await listed("acme", "default")


async def test_collections_are_made_changed_and_dropped_for_good(tmp_path: Path) -> None:
    parts = DictParts()
    async with site(tmp_path, parts) as first:
        made = await first.create(metric=pb.METRIC_L2, description="d", regions=["europe-west1"])
        assert (made.metric, made.dimension, made.generation, made.recall) == (pb.METRIC_L2, 2, 1, -1.0)
        with pytest.raises(AlreadyExists, match="'docs' is there already"):
            await first.create()
        await first.upsert(row("a", 3, 0))
        assert (await first.search([1, 0])).hits[0].score == 4.0
        request = pb.UpdateCollectionRequest(
            collection=ref(), description="e", replicate_to=["b"], set_replicate_to=True
        )
        changed = await first.ask("UpdateCollection", request)
        assert (changed.description, changed.replicate_to, changed.regions) == ("e", ["b"], ["europe-west1"])
    async with site(tmp_path, parts) as second:
        kept = await second.ask("GetCollection", ref())
        assert (kept.description, kept.replicate_to, kept.rows) == ("e", ["b"], 1)
        assert (await second.ask("DropCollection", ref())).rows == 1
        with pytest.raises(NotFound):
            await second.search([1, 0])
        assert not parts.disk.store and not parts.disk.indexes
        await second.create()
        assert await second.ids() == []
    async with site(tmp_path, parts) as third:
        assert await third.ids() == []


async def test_quotas_of_a_namespace(tmp_path: Path) -> None:
    async with site(tmp_path, namespaces={"acme": Quota(max_vectors=3)}) as found:
        await found.create(reach="acme")
        await found.upsert(row("a"), row("b"), reach="acme")
        with pytest.raises(QuotaExceeded, match="'acme' has 2 vectors, of 3 at most: no room for 2"):
            await found.upsert(row("c"), row("d"), reach="acme")
        await found.upsert(row("a", text="in its place"), row("c"), reach="acme")
        answer = await found.ask("ListCollections", pb.ListCollectionsRequest(), "acme")
        (use,) = answer.namespaces
        assert (use.namespace, use.rows, use.max_rows) == ("acme", 3, 3)


async def test_bytes_have_a_quota_too(tmp_path: Path) -> None:
    async with site(tmp_path, max_bytes=100) as found:
        await found.create()
        with pytest.raises(QuotaExceeded, match="no room for 208"):
            await found.upsert(row("a", text="x" * 200))
        await found.upsert(row("a", text="x" * 50))


async def test_a_namespace_that_is_not_allowed_here(tmp_path: Path) -> None:
    async with site(tmp_path, allow=("acme",)) as found:
        with pytest.raises(PermissionDenied, match="'default' is not served on this node"):
            await found.create()


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


def applier_of(found: Site) -> DictApplier:
    assert isinstance(found.keeper.applier, DictApplier)
    return found.keeper.applier


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
