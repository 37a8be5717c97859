"""An import as a whole, against a collection that is only pretended: what is sent, skipped, taken away and told."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearmesh.errors import InvalidInput, MeshError, NotFound, Overloaded, PermissionDenied, StorageFull, Unreachable
from nearmesh.ingest import importer, plan
from nearmesh.ingest.files import find
from nearmesh.ingest.importer import Wish, run
from nearmesh.ingest.plan import Tally, all_of, gone, older_than, quoted, row_id, too_many
from nearmesh.ingest.sources import Rules
from nearmesh.ingest.split import Sizes
from nearmesh.v1 import vector_pb2 as pb
from tests.fake_vectors import FakeTarget

RULES = Rules(sizes=Sizes(100, 0))
LONG = " ".join(f"Sentence number {n} of it." for n in range(20))


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nWords of a.")
    (folder / "b.txt").write_text(LONG)
    (folder / "c.jsonl").write_text('{"id": 1, "text": "One."}\n{"id": 2, "text": "Two."}\n')
    return folder


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits end at once."""
    monkeypatch.setattr("nearmesh.backoff.random.uniform", lambda low, high: 0.0)


async def again(target: FakeTarget, *paths: Path, **wish: object) -> Tally:
    return await run(target, find(paths), Wish(rules=RULES, **wish))  # type: ignore[arg-type]


async def test_files_become_rows(docs: Path) -> None:
    target = FakeTarget(lang=pb.FIELD_TYPE_STRING)
    (docs / "c.jsonl").write_text('{"id": 1, "text": "One.", "lang": "en", "other": 1}')
    tally = await again(target, docs)
    assert (tally.files, tally.files_done, tally.new, tally.problem_count) == (3, 3, 3, 0)
    assert tally.rows_written == len(target.rows) > 6
    assert target.rows["docs/a.md#0"].origin.position == "A"
    assert target.texts["docs/c.jsonl/1#0"] == "One."
    assert dict(target.rows["docs/c.jsonl/1#0"].fields) == {"lang": pb.Value(string="en")}
    of_b = [row for row in target.rows.values() if row.origin.source == "docs/b.txt"]
    assert [row.id for row in of_b] == [f"docs/b.txt#{n}" for n in range(len(of_b))]
    assert {(row.origin.parts, row.origin.hash) for row in of_b} == {(len(of_b), of_b[0].origin.hash)}
    assert " ".join(row.text for row in of_b) == LONG


async def test_what_has_not_changed_is_not_sent(docs: Path) -> None:
    target = FakeTarget()
    await again(target, docs)
    target.upserts.clear()
    tally = await again(target, docs)
    assert (tally.unchanged, tally.rows_written, target.upserts, target.deletes) == (4, 0, [], [])
    assert (await again(target, docs / "c.jsonl")).unchanged == 2


async def test_a_changed_record_is_sent_alone_and_a_shorter_text_leaves_nothing_behind(docs: Path) -> None:
    target = FakeTarget()
    await again(target, docs)
    target.upserts.clear()
    (docs / "b.txt").write_text("Short.")
    (docs / "c.jsonl").write_text('{"id": 2, "text": "Two."}\n{"id": 1, "text": "Eins."}\n')
    tally = await again(target, docs)
    assert target.upserts == [["docs/b.txt#0", "docs/c.jsonl/1#0"]]
    assert (tally.changed, tally.unchanged, tally.deleted) == (2, 2, 0) and tally.rows_deleted > 3
    assert len(target.deletes) == 1, "a row that took the place of another leaves nothing to delete"
    assert target.texts == {
        "docs/a.md#0": "# A\n\nWords of a.",
        "docs/b.txt#0": "Short.",
        "docs/c.jsonl/1#0": "Eins.",
        "docs/c.jsonl/2#0": "Two.",
    }


async def test_what_has_gone_is_deleted_unless_it_is_kept(docs: Path, tmp_path: Path) -> None:
    target = FakeTarget()
    other = tmp_path / "docs-old"
    other.mkdir()
    (other / "x.txt").write_text("Not asked for.")
    await again(target, docs, other)
    (docs / "b.txt").unlink()
    (docs / "c.jsonl").write_text('{"id": 2, "text": "Two."}')
    (docs / "a.md").write_text("")
    kept = await again(target, docs, keep_gone=True)
    assert (kept.deleted, kept.empty) == (0, 1) and "docs/b.txt#0" in target.rows
    tally = await again(target, docs)
    assert tally.deleted == 2
    assert list(target.texts) == ["docs-old/x.txt#0", "docs/c.jsonl/2#0"]


async def test_nothing_has_gone_of_what_cannot_be_read_or_is_left_out(docs: Path) -> None:
    target = FakeTarget()
    await again(target, docs)
    before = dict(target.rows)
    (docs / "c.jsonl").write_text('{"id": 1, "text": "One."}\n{"id": 2, "te')
    (docs / "b.txt").write_bytes(b"\xff\xff")
    found = find([docs], exclude=["*.md"])
    tally = await run(target, found, Wish(rules=RULES))
    assert [str(problem) for problem in tally.problems] == [
        "docs/b.txt: byte 0 is not utf-8; --encoding names another one",
        "docs/c.jsonl, line 2: not JSON: Unterminated string starting at: line 1 column 11 (char 10)",
    ]
    assert target.rows == before and tally.deleted == 0


async def test_an_empty_folder_deletes_nothing(docs: Path) -> None:
    """As one that is not mounted."""
    target = FakeTarget()
    await again(target, docs)
    for name in ("a.md", "b.txt", "c.jsonl"):
        (docs / name).unlink()
    with pytest.raises(InvalidInput, match="nothing in docs, of which the collection has 4 sources"):
        await again(target, docs)
    assert (await again(target, docs, keep_gone=True)).deleted == 0
    assert len(target.rows) > 6
    assert (await again(target, docs, delete_gone=True)).deleted == 4 and not target.rows


async def test_another_folder_of_the_same_name_does_not_take_its_place(docs: Path, tmp_path: Path) -> None:
    target = FakeTarget()
    for number in range(11):
        (docs / f"{number}.txt").write_text("Words.")
    await again(target, docs)
    other = tmp_path / "other" / "docs"
    other.mkdir(parents=True)
    (other / "b.txt").write_text(LONG)
    tally = await again(target, other)
    assert (tally.withheld, tally.deleted, tally.unchanged) == (14, 0, 1) and len(target.rows) > 14
    tally = await again(target, other, delete_gone=True)
    assert (tally.withheld, tally.deleted) == (0, 14)
    assert {row.origin.source for row in target.rows.values()} == {"docs/b.txt"}


async def test_an_import_that_broke_off_goes_on(docs: Path) -> None:
    (docs / "b.txt").write_text(LONG * 40)
    whole = FakeTarget()
    await again(whole, docs)
    target = FakeTarget()
    for writes in (1, 50, 90, 10**9):
        target.writes_left = writes
        try:
            tally = await again(target, docs)
        except MeshError:
            assert not target.writes_left
    assert target.texts == whole.texts and tally.unchanged == 1
    assert (await again(target, docs)).unchanged == 4


async def test_old_rows_that_an_import_left_behind_go_with_the_next(docs: Path) -> None:
    """Killed between the new rows of a source and the end of its old ones."""
    target = FakeTarget()
    await again(target, docs)
    old = pb.Row(id="docs/a.md#7", text="old", origin=pb.Row.Origin(source="docs/a.md", hash="old", part=7, parts=8))
    target.rows = {old.id: old, **target.rows}
    assert (await again(target, docs)).changed == 1
    assert old.id not in target.rows


async def test_a_source_that_the_node_refuses_takes_no_other_with_it(docs: Path) -> None:
    target = FakeTarget()
    target.refuses = "Words of a"
    tally = await again(target, docs)
    assert [str(p) for p in tally.problems] == ["docs/a.md, A: the node refuses it: its text has 'Words of a' in it"]
    assert tally.new == 3 and "docs/a.md#0" not in target.rows and "docs/c.jsonl/2#0" in target.rows


async def test_a_node_that_refuses_everything_is_left_alone(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "MOST_REFUSED", 2)
    target = FakeTarget()
    target.refuses = "."
    with pytest.raises(InvalidInput, match="its text has"):
        await again(target, docs)


async def test_a_node_that_restarts_is_asked_again(docs: Path) -> None:
    target = FakeTarget()
    target.errors = [Unreachable("gone"), Overloaded("full"), Unreachable("gone")]
    told: list[str] = []
    tally = await run(target, find([docs]), Wish(rules=RULES), lambda tally: told.append(tally.waiting))
    assert tally.new == 4 and {"gone", "full", ""} == set(told) and told[-1] == ""
    target.errors = [StorageFull("no room now", retry_after_ms=1), Unreachable("gone")]
    (docs / "a.md").write_text("Other.")
    assert (await again(target, docs)).changed == 1


@pytest.mark.parametrize("error", [Unreachable("gone"), Overloaded("full", retry_after_ms=3_600_000)])
async def test_patience_ends(docs: Path, error: MeshError) -> None:
    target = FakeTarget()
    target.errors = [error] * 9
    with pytest.raises(type(error)):
        await again(target, docs, patience_s=-1.0)
    assert len(target.errors) >= 7


async def test_what_does_not_pass_ends_it_at_once(docs: Path) -> None:
    target = FakeTarget()
    target.errors = [PermissionDenied("client/me may not write")]
    with pytest.raises(PermissionDenied, match="may not write"):
        await again(target, docs)


async def test_a_dry_run_says_the_same_and_does_nothing(docs: Path) -> None:
    target = FakeTarget()
    dry = await again(target, docs, dry_run=True)
    assert target.rows == {} and target.upserts == []
    real = await again(target, docs)
    assert (dry.new, dry.rows_written) == (real.new, real.rows_written)
    (docs / "b.txt").unlink()
    dry = await again(target, docs, dry_run=True)
    assert (dry.deleted, dry.unchanged, target.deletes) == (1, 3, [])


async def test_without_an_embedder_rows_bring_their_vectors(docs: Path) -> None:
    target = FakeTarget(embedder="", dimension=2)
    with pytest.raises(InvalidInput, match="no embedder"):
        await again(target, docs)
    (docs / "c.jsonl").write_text('{"id": 1, "vector": [1, 2]}\n{"id": 2, "vector": [1, 2], "text": "' + LONG + '"}')
    assert (await again(target, docs / "c.jsonl")).new == 2
    assert target.texts == {"docs/c.jsonl/1#0": "", "docs/c.jsonl/2#0": LONG}
    assert len(target.rows["docs/c.jsonl/1#0"].vector) == 8


async def test_batches_are_small_and_progress_is_told(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MAX_TEXTS", 3)
    monkeypatch.setattr(plan, "DOCUMENTS_A_WORD", 2)
    target, told = FakeTarget(), []
    await run(target, find([docs]), Wish(rules=RULES), lambda tally: told.append(tally.rows_written))
    assert max(map(len, target.upserts)) == 3 and told == sorted(told) and len(set(told)) == 3
    quiet: list[int] = []
    await run(target, find([docs]), Wish(rules=RULES), lambda tally: quiet.append(tally.files_done))
    assert len(quiet) > 2, "also where nothing is sent"


async def test_a_collection_that_is_not_there_is_told(docs: Path) -> None:
    class Nothing(FakeTarget):
        async def describe(self) -> pb.Collection:
            raise NotFound("no collection 'handbook'")

    with pytest.raises(NotFound):
        await again(Nothing(), docs)


# What decides.


@pytest.mark.parametrize(
    ("known", "kept", "left"),
    [
        (["d/a", "d/b"], {"d/a"}, ["d/b"]),
        (["d/a.jsonl/1/2", "d/a.json"], {"d/a.jsonl"}, ["d/a.json"]),
        (["d/deep/x", "e/deep/x"], {"d/deep"}, ["e/deep/x"]),
        (["d/a"], set(), ["d/a"]),
        ([], {"d"}, []),
    ],
)
def test_gone(known: list[str], kept: set[str], left: list[str]) -> None:
    assert gone(known, kept) == left


@pytest.mark.parametrize(
    ("many", "before", "found"), [(10, 10, False), (11, 11, True), (11, 22, False), (12, 22, True)]
)
def test_too_many(many: int, before: int, found: int) -> None:
    assert too_many(many, before) is bool(found)


def test_ids_of_rows_are_short_and_differ() -> None:
    assert row_id("docs/a.md", 3) == "docs/a.md#3"
    long = "字" * 100
    ids = {row_id(name, number) for name in (long, long + "x", long + "y") for number in (0, 1, 99_999)}
    assert len(ids) == 9 and all(len(found.encode()) <= 256 for found in ids)


async def test_a_name_that_looks_like_a_filter_takes_its_own_rows_alone(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    name = 'a" or source != "\\.txt'
    (folder / name).write_text(LONG)
    (folder / "b.txt").write_text("Words.")
    target = FakeTarget()
    await again(target, folder)
    (folder / name).write_text("Short.")
    await again(target, folder)
    assert target.texts == {"docs/b.txt#0": "Words.", f"docs/{name}#0": "Short."}
    (folder / name).unlink()
    assert (await again(target, folder)).rows_deleted == 1
    assert list(target.texts) == ["docs/b.txt#0"]


def test_filters_name_any_source(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quoted('a"b\\c') == '"a\\"b\\\\c"'
    found = plan.Finished('a" or true or "', "h", 1, True, True)
    assert older_than(found) == 'source == "a\\" or true or \\"" and source_hash != "h"'
    monkeypatch.setattr(plan, "MAX_FILTER_CHARACTERS", 12)
    assert list(all_of(["a", "b", "c" * 20, "d"])) == [
        ('source in ["a", "b"]', 2),
        ('source in ["cccccccccccccccccccc"]', 1),
        ('source in ["d"]', 1),
    ]
    assert list(all_of([])) == []
