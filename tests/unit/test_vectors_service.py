"""VectorService over parts that are dicts: what callers see of writes, searches, limits, quotas and a kill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nearmesh_agent.vectors import answers, limits
from nearmesh_agent.vectors.config import Quota
from nearmesh_agent.vectors.room import Room

from nearmesh.errors import (
    AlreadyExists,
    InvalidInput,
    MeshError,
    NotFound,
    NotReady,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    TooLarge,
)
from nearmesh.v1 import vector_pb2 as pb
from tests.vector_parts import DictParts
from tests.vector_site import Site, bytes_of, ref, row, site


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


async def test_collections_have_a_quota_too(tmp_path: Path) -> None:
    """So that one namespace cannot use up what a node has room for; a copy of another site's is made all the same."""
    async with site(tmp_path, namespaces={"acme": Quota(max_collections=1)}) as found:
        for name in ("one", "two", "three"):
            await found.create(name)
        await found.create("one", "acme")
        (there,) = (one for one in found.keeper if one.spec.namespace == "acme")
        await found.keeper.create(replace(there.spec, name="copy", identity="0" * 32), copy=True)
        with pytest.raises(QuotaExceeded, match="'acme' has 2 collections, of 1 at most"):
            await found.create("two", "acme")
        for name in ("one", "copy"):
            await found.ask("DropCollection", ref(name), "acme")
        await found.create("two", "acme")


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


async def test_writes_that_wait_take_bounded_memory_and_more_are_told_to_come_again(docs: Site) -> None:
    """Over all collections, also while they are held."""
    await docs.create("other")
    room = docs.servicer._room = Room(100)
    elsewhere = pb.UpsertRequest(collection=ref("other"), rows=[row("b")])
    (collection,) = (one for one in docs.keeper if one.spec.name == "docs")
    collection.hold(60)
    large = asyncio.create_task(docs.upsert(row("a", text="x" * 200)))
    while not room._taken_bytes:  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="more are above the limit of 100") as told:
        await docs.ask("Upsert", elsewhere)
    assert told.value.retry_after_ms
    assert not large.done(), "one that is larger than all the room is let in alone"
    collection.release()
    assert (await large).written == 1
    assert (await docs.ask("Upsert", elsewhere)).written == 1
