"""Rows that are moved between real stores: from Lite to another Lite, to a server, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nearmesh_agent.vectors.model import Metric, Table, Write
from nearmesh_agent.vectors.store import migrate
from nearmesh_agent.vectors.store.lite import LiteStore
from nearmesh_agent.vectors.store.migrate import Phase
from nearmesh_agent.vectors.store.milvus import MilvusStore

from nearmesh.errors import NotReady, Unsupported
from tests import milvus_server
from tests.contract.test_vectors_store import HOSTILE
from tests.stored_rows import row, table, told

TABLES = [table("moved_books"), table("moved_maps", Metric.L2)]


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteStore]:
    store = LiteStore(tmp_path_factory.mktemp("lite") / "milvus.db")
    for each in TABLES:
        store.create(each)
        rows = [*(row(name, 1) for name in HOSTILE), *(row(f"r{number:04d}", number) for number in range(1500))]
        store.write([Write(table=each.name, rows=rows), Write(table=each.name, deleted=["r0007"])])
    yield store
    store.close()


@pytest.fixture(scope="module", params=["lite", "server"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    store = (
        LiteStore(tmp_path_factory.mktemp("other") / "other.db")
        if request.param == "lite"
        else MilvusStore(request.getfixturevalue("milvus_server").uri, milvus_server.TOKEN, settle_s=0.0)
    )
    yield store
    for each in TABLES:
        store.drop(each.name)
    store.close()


def content(store: MilvusStore, of: Table) -> list[object]:
    return [told(found) for page in store.scan(of.name) for found in page]


def test_a_move_gives_the_other_store_just_what_this_one_has(lite: LiteStore, other: MilvusStore) -> None:
    other.create(TABLES[0])
    other.write([Write(table=TABLES[0].name, rows=[row("too many"), row("r0003", 99), row("r0004", 4)])])
    found = list(migrate.migrate(lite, other, TABLES))
    assert {(one.table, one.phase) for one in found} == {
        (each.name, phase) for each in TABLES for phase in (Phase.COPYING, Phase.VERIFYING)
    }
    assert found[-1].done == found[-1].total == 1499 + len(HOSTILE)
    for each in TABLES:
        assert content(other, each) == content(lite, each)


def test_what_the_other_store_does_not_build_is_told_before_anything_is_copied(
    lite: LiteStore, other: MilvusStore
) -> None:
    wanted = "DISKANN" if isinstance(other, LiteStore) else "HNSW_SQ"
    with pytest.raises(Unsupported, match=wanted):
        next(migrate.migrate(lite, other, [table("refused", index_type=wanted)]))


def test_a_lite_that_another_process_holds_is_told(lite: LiteStore) -> None:
    second = LiteStore(Path(lite._folder))
    with pytest.raises(NotReady, match="is in use by another process"):
        second.tables()
    second.close()
