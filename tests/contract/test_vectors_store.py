"""One suite for every Milvus that vectors may be kept in, Lite and a server, and for what answers before them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from nearmesh_agent.vectors import filters
from nearmesh_agent.vectors.model import Metric, Row, Store, Table, Write
from nearmesh_agent.vectors.store import place, schema
from nearmesh_agent.vectors.store.lite import LiteStore
from nearmesh_agent.vectors.store.milvus import MilvusStore

from nearmesh.errors import MeshError, NotFound, Unsupported
from tests.fast_path import FastPath
from tests.milvus_server import TOKEN, MilvusServer
from tests.stored_rows import DIMENSION, FIELDS, row, table, told

NAMES = (f"books_{number}" for number in itertools.count())
# What an expression might trip over, and what sorts otherwise in other alphabets; in their order.
HOSTILE = sorted(
    [
        '"',
        "'",
        "\\",
        "\n",
        "a b",
        'a" or id != "',
        "a'b",
        "a\\",
        "a\\n",
        "a\nb\r\tc",
        "id in [1]",
        "%",
        "é",
        "中文",
        "😀",
        "z" * 256,
    ]
)


@pytest.fixture(scope="module", params=["lite", "server", "fast path", "engine"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made: MilvusStore | FastPath
    match request.param:
        case "lite":
            made = LiteStore(tmp_path_factory.mktemp("lite") / "milvus.db")
        case "server":
            uri = request.getfixturevalue("milvus_server").uri
            made = MilvusStore(uri, TOKEN, owner=place.owner("node"), settle_s=0.0)
        case _:
            made = FastPath(tmp_path_factory.mktemp("fast"), by_engine=request.param == "engine")
    yield made
    made.close()


@pytest.fixture
def engine(store: Store) -> MilvusStore:
    """Where something is asked of Milvus alone."""
    if not isinstance(store, MilvusStore):
        pytest.skip("no engine of Milvus answers here")
    return store


@pytest.fixture(scope="module")
def shelf(store: Store) -> Iterator[Table]:
    made = table(next(NAMES))
    store.create(made)
    yield made
    store.drop(made.name)


@pytest.fixture
def books(store: Store, shelf: Table) -> Iterator[Table]:
    """An empty table, which the next test finds empty, too: a server takes seconds to make one."""
    yield shelf
    if left := ids(store, shelf):
        put(store, shelf, deleted=left)


def put(store: Store, books: Table, *rows: Row, deleted: Sequence[str] = ()) -> None:
    store.write([Write(table=books.name, rows=rows, deleted=deleted)])


def ids(store: Store, books: Table) -> list[str]:
    return [found.id for page in store.scan(books.name) for found in page]


def test_a_row_comes_back_as_it_was_written(store: Store, books: Table) -> None:
    rows = [row("a", 1), row("b", 2, {}), row("c", 3, {"draft": False, "pages": -(2**63) + 1}), row("ü", 4)]
    put(store, books, *rows)
    assert [told(found) for found in store.get(books.name, ["c", "none", "a", "ü", "b", "a"])] == [
        told(rows[2]), told(rows[0]), told(rows[3]), told(rows[1])
    ]  # fmt: skip
    assert store.get(books.name, []) == []


def test_writing_the_same_again_changes_nothing_and_the_newest_counts(store: Store, books: Table) -> None:
    put(store, books, row("a", 1), row("b", 1))
    put(store, books, row("a", 1), row("b", 1))
    put(store, books, row("b", 2))
    assert store.count(books.name) == 2
    assert [told(found) for found in store.get(books.name, ["a", "b"])] == [told(row("a", 1)), told(row("b", 2))]


def test_all_that_was_flushed_is_read_at_once(engine: MilvusStore, books: Table) -> None:
    put(engine, books, *(row(f"r{number:04}", 1) for number in range(30)), row("b", 4, {}))
    engine.flush()
    put(engine, books, *(row(f"r{number:04}", 2) for number in range(0, 30, 3)), deleted=["r0004", "r0006"])
    engine.flush()
    put(engine, books, row("r0004", 3), deleted=["r0000", "r0005"])
    engine.flush()
    found = sorted((each for page in engine.everything(books.name) for each in page), key=lambda each: each.id)
    assert [told(each) for each in found] == [told(each) for page in engine.scan(books.name) for each in page]
    assert len(found) == 28


def test_writes_of_one_call_are_taken_in_order(store: Store, books: Table) -> None:
    store.write(
        [
            Write(table=books.name, rows=[row("a", 1), row("b", 1), row("c", 1)]),
            Write(table=books.name, rows=[row("a", 2), row("b", 2)], deleted=["b", "c"]),
            Write(table=books.name, rows=[row("c", 3)]),
        ]
    )
    assert [told(found) for found in store.get(books.name, ["a", "b", "c"])] == [told(row("a", 2)), told(row("c", 3))]


def test_what_was_deleted_is_gone_and_may_come_back(store: Store, books: Table) -> None:
    put(store, books, *(row(f"r{number}") for number in range(10)))
    put(store, books, deleted=["r3", "r4", "never"])
    assert ids(store, books) == [f"r{number}" for number in range(10) if number not in (3, 4)]
    assert store.count(books.name) == 8
    store.flush()
    put(store, books, deleted=["r5"])
    put(store, books, row("r4", 4))
    assert ids(store, books) == [f"r{number}" for number in range(10) if number not in (3, 5)]
    hits = store.search(books.name, row("r3").vector, 10)
    assert {hit.id for hit in hits} <= set(ids(store, books))


def test_rows_are_scanned_in_the_order_of_their_ids_from_any_on(store: Store, books: Table) -> None:
    names = [f"r{number:03d}" for number in range(25)]
    put(store, books, *(row(name) for name in reversed(names)))
    put(store, books, row("r007", 9), deleted=["r010"])
    names.remove("r010")
    pages = list(store.scan(books.name, batch=10))
    assert [len(page) for page in pages] == [10, 10, 4]
    assert [found.id for page in pages for found in page] == names
    assert told(pages[0][7]) == told(row("r007", 9))
    assert [found.id for page in store.scan(books.name, after="r020") for found in page] == names[-4:]
    assert list(store.scan(books.name, after="r024")) == []


def test_ids_that_an_expression_might_trip_over(store: Store, books: Table) -> None:
    put(store, books, *(row(name) for name in HOSTILE))
    assert [found.id for found in store.get(books.name, HOSTILE)] == HOSTILE
    assert [found.id for page in store.scan(books.name, batch=3) for found in page] == HOSTILE
    put(store, books, deleted=HOSTILE[::2])
    assert ids(store, books) == HOSTILE[1::2]


def test_texts_as_large_as_a_column_takes(store: Store, books: Table) -> None:
    large = replace(row("large"), text="ü" * (schema.MAX_TEXT_BYTES // 2))
    put(store, books, large, row("small"))
    assert [told(found) for found in store.get(books.name, ["large"])] == [told(large)]


# Asked of rows some of which lack fields, and some of which have nothing, or hostile texts, in them.
FILTERS = [
    "pages >= 3 and pages < 6",
    "pages == 0",
    "not pages == 0",
    "pages not in [0, 1, 2, 9223372036854775807]",
    "pages == -9223372036854775807",
    'language in ["de", "fr"]',
    'language == ""',
    'language != ""',
    'not (language == "de" or price > 3.5)',
    "draft == true",
    "not draft == true",
    "price > 7 and price <= 1e9",
    "price < 1e-7",
    'source == "r2.md" or part == 5',
    'id >= "r08" and not id in ["r09"]',
    'id like "r1%"',
    'source_hash like "5%" and not source like "r0%"',
    'language like "\\"%"',
    'language == "a\\\\b\\n\\"c\'d\\t"',
    'language > "a" and language <= "中文"',
    'language like "中%" or language like "😀%"',
    "(" * 8 + "pages > 1" + ")" * 8,
    " or ".join(f"pages == {number} and draft == true" for number in range(128)),
    f"id in [{', '.join(repr(f'r{number:02d}') for number in range(5, 500))}]",
]


@pytest.fixture(scope="module")
def filtered(store: Store) -> Iterator[tuple[Table, Sequence[Row]]]:
    made = table(next(NAMES))
    store.create(made)
    texts = itertools.cycle(["en", "de", "", "a\\b\n\"c'd\t", '"', "中文", "😀", None, "fr"])
    pages = itertools.cycle([0, 1, None, 3, 4, 5, -(2**63) + 1])
    rows = []
    for number in range(24):
        given = {"pages": next(pages), "price": number - 5.0, "language": next(texts), "draft": number % 3 == 0}
        absent = {name for number_of, name in enumerate(given) if (number + 1) % (5 + number_of) == 0}
        fields = {name: value for name, value in given.items() if name not in absent and value is not None}
        rows.append(row(f"r{number:02d}", number, fields))
    put(store, made, *rows)
    store.flush()
    yield made, rows
    store.drop(made.name)


@pytest.mark.parametrize("text", FILTERS, ids=range(len(FILTERS)))
def test_filters_take_the_rows_that_they_take_in_memory(
    store: Store, filtered: tuple[Table, Sequence[Row]], text: str
) -> None:
    made, rows = filtered
    where = filters.read(text, FIELDS)
    assert where is not None
    wanted = [each.id for each in rows if where.matches(each)]
    assert store.count(made.name, where) == len(wanted)
    assert sorted(hit.id for hit in store.search(made.name, row("r0").vector, 100, where)) == wanted


@pytest.mark.parametrize("metric", list(Metric))
def test_scores_are_as_the_metric_says(store: Store, metric: Metric) -> None:
    made = table(next(NAMES), metric)
    store.create(made)
    rows = [row(f"r{number}", number) for number in range(20)]
    put(store, made, *rows)
    asked = row("asked", 99).vector
    found = store.search(made.name, asked, 5)
    wanted = sorted(((score(metric, asked, each.vector), each.id) for each in rows), reverse=metric is not Metric.L2)
    assert [hit.id for hit in found] == [row_id for _, row_id in wanted[:5]]
    assert [hit.score for hit in found] == pytest.approx([value for value, _ in wanted[:5]], abs=1e-4)
    store.drop(made.name)


def score(metric: Metric, one: np.ndarray, other: np.ndarray) -> float:
    match metric:
        case Metric.COSINE:
            return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        case Metric.INNER_PRODUCT:
            return float(one @ other)
    return float(((one - other) ** 2).sum())


def test_more_than_there_are_may_be_asked_for(store: Store, books: Table) -> None:
    assert store.search(books.name, row("a").vector, 5) == []
    assert store.count(books.name) == 0
    assert ids(store, books) == []
    put(store, books, row("a"))
    assert [hit.id for hit in store.search(books.name, row("a").vector, 100)] == ["a"]


@pytest.mark.parametrize("index_type", ["FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8"])
def test_an_index_that_the_engine_builds_finds_the_newest_state(store: Store, index_type: str) -> None:
    """Rows in several segments, written again and deleted in between."""
    made = table(next(NAMES), index_type=index_type)
    store.create(made)
    for turn in range(3):
        put(store, made, *(row(f"r{number:03d}", turn) for number in range(0, 60, turn + 1)))
        put(store, made, deleted=[f"r{number:03d}" for number in range(turn, 60, 10)])
        store.flush()
    there = {found.id: found for page in store.scan(made.name) for found in page}
    for asked in list(there.values())[::7]:
        hits = store.search(made.name, asked.vector, 10)
        assert hits[0].id == asked.id and hits[0].score == pytest.approx(1.0, abs=0.02)
        assert len({hit.id for hit in hits}) == len(hits) == 10
        assert {hit.id for hit in hits} <= there.keys()
    store.drop(made.name)


@pytest.mark.parametrize("index_type", ["ANNOY", "SPARSE_INVERTED_INDEX", "GPU_CAGRA", "nonsense"])
def test_an_index_that_the_engine_does_not_build_is_refused_and_leaves_nothing(store: Store, index_type: str) -> None:
    made = table(next(NAMES), index_type=index_type)
    with pytest.raises(Unsupported, match=f"index type {index_type!r} is not built by Milvus.*; take one of .*HNSW"):
        store.create(made)
    assert made.name not in store.tables()


def test_tables_come_and_go(store: Store) -> None:
    made = table(next(NAMES))
    assert made.name not in store.tables()
    store.create(made)
    put(store, made, row("a"))
    store.create(made)
    assert made.name in store.tables()
    assert ids(store, made) == ["a"]
    store.drop(made.name)
    store.drop(made.name)
    assert made.name not in store.tables()
    with pytest.raises(NotFound, match=made.name):
        store.count(made.name)
    with pytest.raises(NotFound, match=made.name):
        put(store, made, row("a"))
    # The same name again is an empty one.
    store.create(made)
    assert store.count(made.name) == 0
    store.drop(made.name)


def test_a_collection_that_somebody_released_is_loaded_again(engine: MilvusStore, books: Table) -> None:
    put(engine, books, row("a"))
    engine._call("release_collection", books.name)
    assert ids(engine, books) == ["a"]


def test_a_table_whose_making_was_broken_off_is_made_whole(engine: MilvusStore) -> None:
    made = table(next(NAMES), index_type="HNSW")
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(engine, "_build", lambda *_: None)
        with contextlib.suppress(MeshError):
            engine.create(made)
    engine.create(made)
    put(engine, made, row("a"))
    assert [hit.id for hit in engine.search(made.name, row("a").vector, 3)] == ["a"]
    engine.drop(made.name)


def test_as_many_fields_as_a_table_may_have(store: Store) -> None:
    kinds = itertools.cycle(FIELDS.values())
    fields = {f"field_{number}": next(kinds) for number in range(schema.MAX_FIELDS)}
    made = Table(name=next(NAMES), dimension=DIMENSION, metric=Metric.COSINE, fields=fields)
    store.create(made)
    put(store, made, row("a", 1, {}))
    assert store.get(made.name, ["a"])[0].fields == {}
    store.drop(made.name)


def test_nodes_that_share_a_server_have_tables_of_their_own(milvus_server: MilvusServer) -> None:
    """A collection that is replicated has the same name on each."""
    one, other = (
        MilvusStore(milvus_server.uri, TOKEN, owner=place.owner(node), settle_s=0.0) for node in ("one", "other")
    )
    books = table("shared")
    for store in (one, other):
        store.create(books)
        assert store.tables() == ["shared"]
    put(one, books, row("a"))
    assert (ids(one, books), ids(other, books)) == (["a"], [])
    other.drop("shared")
    assert (ids(one, books), one.tables(), other.tables()) == (["a"], ["shared"], [])
    one.drop("shared")
    for store in (one, other):
        store.close()
