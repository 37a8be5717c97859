"""P3 for vectors: what was acknowledged is on disk after a power cut, in our journal and in Milvus Lite's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from milvus_lite.db import MilvusLite
from milvus_lite.schema.types import CollectionSchema, DataType, FieldSchema
from milvus_lite.storage import data_file, delta_file
from nearmesh_agent.vectors.collections import CollectionSpec, Specs
from nearmesh_agent.vectors.model import Write
from nearmesh_agent.vectors.store import disk
from nearmesh_agent.vectors.store.journal import Journal
from nearmesh_agent.vectors.text.lexical import TantivyLexical

from nearmesh.errors import DigestMismatch, NotInstalled
from tests.power_cut import PowerCut
from tests.stored_rows import row, told

SCHEMA = CollectionSchema(
    fields=[
        FieldSchema(name="id", dtype=DataType.VARCHAR, is_primary=True, max_length=64),
        FieldSchema(name="vector", dtype=DataType.FLOAT_VECTOR, dim=2),
        FieldSchema(name="turn", dtype=DataType.INT64),
    ]
)


@pytest.fixture
def power(monkeypatch: pytest.MonkeyPatch) -> Iterator[PowerCut]:
    watched = PowerCut(monkeypatch)
    yield watched
    watched.close()


def test_p3_each_acknowledged_write_is_in_the_journal_after_a_power_cut(tmp_path: Path, power: PowerCut) -> None:
    journal = Journal(tmp_path / "vectors" / "journal", segment_bytes=700)
    wanted = []
    for number in range(1, 20):
        journal.append_now([Write(table="books", rows=[row(f"r{number}", number)])])
        wanted.append(told(row(f"r{number}", number)))
        if number == 12:
            journal.forget(7)
            wanted = wanted[journal.first - 1 :]
            first = journal.first
        found = Journal(power.leaves(tmp_path / "vectors", tmp_path / f"cut{number}") / "journal")
        assert [told(each) for _, write in found.after(found.first - 1) for each in write.rows] == wanted
        found.close()
    assert first > 1
    journal.close()


def test_p3_a_collection_that_was_made_is_there_after_a_power_cut(tmp_path: Path, power: PowerCut) -> None:
    specs = Specs(tmp_path / "vectors" / "collections")
    for name in ("docs", "gone"):
        specs.put(CollectionSpec(namespace="acme", name=name, identity=name))
    specs.drop(specs.get("acme", "gone"))
    found = Specs(power.leaves(tmp_path / "vectors", tmp_path / "cut") / "collections")
    assert ([one.name for one in found], [one.name for one in found.dropped]) == (["docs"], ["gone"])


def test_p3_words_that_are_begun_anew_do_not_come_back_as_whole_after_a_power_cut(
    tmp_path: Path, power: PowerCut
) -> None:
    folder = tmp_path / "words"
    words = TantivyLexical.new(folder)
    words.apply(Write(table="books", rows=[row("a", 1)]), 1)
    words.save()
    words.close()
    saved = power.leaves(folder, tmp_path / "saved")
    TantivyLexical.new(folder).close()
    begun = power.leaves(folder, tmp_path / "begun")
    assert {one.name for one in saved.iterdir()} > {one.name for one in begun.iterdir()}
    assert TantivyLexical.load(begun) is None


class Lite:
    """Milvus Lite in this process, so that its syncs are seen, and what it should have on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lite = MilvusLite(str(folder))
        disk.clear(folder)
        if not self.lite.has_collection("books"):
            self.lite.create_collection("books", SCHEMA)
        self.books = self.lite.get_collection("books")

    def put(self, names: Mapping[str, int]) -> None:
        self.books.insert([{"id": name, "vector": [1.0, turn], "turn": turn} for name, turn in names.items()])

    def flush(self) -> None:
        self.books.flush()
        # Merging small files goes on behind; it is to be over when the power is cut.
        self.books._wait_for_bg()

    def here(self) -> dict[str, int]:
        return {found["id"]: found["turn"] for found in self.books.query('id != ""', output_fields=["turn"])}

    def close(self) -> None:
        self.lite.close()
        disk.close(self.folder)


@pytest.fixture
def durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    for module in (data_file, delta_file):
        monkeypatch.setattr(module, "pq", module.pq)
    return lambda: disk.make_durable(tmp_path / "lite")


def run(lite: Lite, after_flush: Callable[[int, dict[str, int]], None]) -> None:
    """Writes, overwrites and deletes, with enough flushes for files to be merged twice."""
    wanted: dict[str, int] = {}
    for turn in range(10):
        changed = {f"r{number}": turn for number in range(0, 60, turn + 1)}
        lite.put(changed)
        gone = [f"r{number}" for number in range(turn, 60, 7)]
        lite.books.delete(gone)
        wanted = {name: number for name, number in {**wanted, **changed}.items() if name not in gone}
        lite.flush()
        # In memory, and in Lite's own log.
        lite.put({"not flushed": turn})
        after_flush(turn, dict(wanted))
        lite.books.delete(["not flushed"])


def test_p3_what_lite_has_flushed_is_there_after_a_power_cut(
    tmp_path: Path, power: PowerCut, durable: Callable[[], None]
) -> None:
    durable()
    lite = Lite(tmp_path / "lite")
    files = []

    def cut(turn: int, wanted: dict[str, int]) -> None:
        left = power.leaves(tmp_path / "lite", tmp_path / f"cut{turn}")
        files.append(len(list(left.glob("collections/books/partitions/*/data/*.parquet"))))
        found = Lite(left)
        assert found.here() == wanted
        found.close()

    run(lite, cut)
    lite.close()
    # Files were merged in between.
    assert max(files) > min(files[-3:])


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("partitions/*/data/*.parquet", "is gone"),
        ("partitions/*/delta/*.parquet", "is gone"),
        ("manifest.json", "is gone"),
        ("", "manifest.json cannot be read"),
    ],
)
def test_a_file_that_is_damaged_is_told_where_lite_would_go_on_without(tmp_path: Path, kind: str, what: str) -> None:
    """Without the one rows are missing, without another deleted ones are back."""
    lite = Lite(tmp_path)
    lite.put({"a": 1, "b": 1})
    lite.flush()
    lite.books.delete(["a"])
    lite.flush()
    lite.close()
    disk.check(tmp_path)
    books = tmp_path / "collections" / "books"
    if kind:
        for path in books.glob(kind):
            path.unlink()
    else:
        os.truncate(books / "manifest.json", 30)
    with pytest.raises(DigestMismatch, match=f"Milvus Lite is damaged, .*{what}.*bring .*books back from a copy"):
        disk.check(tmp_path)


def test_lite_alone_would_lose_it(tmp_path: Path, power: PowerCut) -> None:
    """What `disk` is for; where a new Lite syncs its files by itself, it may go."""
    lite = Lite(tmp_path / "lite")
    lite.put({"a": 1})
    lite.flush()
    for parent in ("lite/collections/books", "lite/collections", "lite"):
        fd = os.open(tmp_path / parent, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    left = power.leaves(tmp_path / "lite", tmp_path / "cut")
    assert not list(left.glob("collections/books/partitions/*/data/*.parquet"))
    lite.close()


@pytest.mark.parametrize("left", [[], ["wal", "manifest.json"]])
def test_a_collection_that_is_half_made_or_half_removed_is_cleared_away(tmp_path: Path, left: list[str]) -> None:
    half = tmp_path / "collections" / "half"
    half.mkdir(parents=True)
    for name in left:
        (half / name).write_bytes(b"x")
    whole = tmp_path / "collections" / "whole"
    (whole / "wal").mkdir(parents=True)
    (whole / "schema.json").write_text("{}")
    disk.clear(tmp_path)
    assert [path.name for path in (tmp_path / "collections").iterdir()] == ["whole"]
    assert not (whole / "wal").exists()
    assert list(disk.names(tmp_path)) == ["whole"]


def test_indexes_are_kept_after_an_orderly_end_alone(tmp_path: Path) -> None:
    """Lite writes them in place: a kill leaves half of one, and Lite fails when it reads it."""
    whole = tmp_path / "collections" / "books"
    index = whole / "partitions" / "_default" / "indexes" / "data.vector.hnsw.idx"
    index.parent.mkdir(parents=True)
    (whole / "schema.json").write_text("{}")
    index.write_bytes(b"half")
    disk.close(tmp_path)
    disk.clear(tmp_path)
    assert index.exists()
    # As a crash leaves it.
    disk.clear(tmp_path)
    assert not index.exists()


def test_a_lite_of_other_insides_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data_file, "pq", data_file.pq)
    monkeypatch.delattr(data_file, "pq")
    with pytest.raises(NotInstalled, match="pip install 'nearmesh-agent"):
        disk.make_durable(tmp_path)
