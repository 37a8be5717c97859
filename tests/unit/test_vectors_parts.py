"""The pure parts of a collection: the order of writes, what rows are from, recall, and the small file of each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nearmesh_agent.vectors import writer as writer_module
from nearmesh_agent.vectors.collections import CollectionSpec, Generation, Specs
from nearmesh_agent.vectors.model import Origin, Row
from nearmesh_agent.vectors.recall import Recall
from nearmesh_agent.vectors.sources import Sources
from nearmesh_agent.vectors.writer import Waiting, Writer, take

from nearmesh.errors import NotFound, NotReady, Overloaded, StorageFull


def part(source: str, number: int = 0, *, of: int = 1, hash_: str = "h", at_s: float = 1.0) -> Row:
    origin = Origin(source=source, hash=hash_, part=number, parts=of)
    return Row(id=f"{source}-{hash_}-{number}", vector=np.ones(2, np.float32), origin=origin, written_at_s=at_s)


# The order of writes.


@pytest.mark.parametrize(
    ("ids", "together"),
    [
        (["ab", "cd", "ef"], 3),
        (["ab", "bc", "ef"], 1),
        (["ab", "cd", "da"], 2),
        ([None, "ab"], 1),
        (["ab", None, "cd"], 1),
        (["abcdefgh", "ijk"], 1),
    ],
)
async def test_writes_that_touch_the_same_rows_never_share_a_turn(ids: list[str | None], together: int) -> None:
    waiting = deque(Waiting(n, None if one is None else frozenset(one)) for n, one in enumerate(ids))
    assert [one.work for one in take(waiting, most=10)] == list(range(together))
    assert len(waiting) == len(ids) - together


async def test_writes_that_come_while_one_is_under_way_share_the_next() -> None:
    groups: list[list[str]] = []
    gate = asyncio.Event()

    async def write(works: Sequence[str]) -> None:
        groups.append(list(works))
        await gate.wait()

    writer = Writer(write)
    first = asyncio.create_task(writer.put("a", ["a"]))
    await asyncio.sleep(0)
    others = [asyncio.create_task(writer.put(name, [name])) for name in "bcd"]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *others)
    await writer.quiet()
    assert groups == [["a"], ["b", "c", "d"]]


async def test_a_caller_that_goes_away_stops_no_write_and_what_fails_fails_for_all_of_it() -> None:
    done: list[str] = []
    gate = asyncio.Event()

    async def write(works: Sequence[str]) -> None:
        await gate.wait()
        if "bad" in works:
            raise StorageFull("no room")
        done.extend(works)

    writer = Writer(write)
    left = asyncio.create_task(writer.put("a", ["a"]))
    await asyncio.sleep(0)
    left.cancel()
    bad = [asyncio.create_task(writer.put(name, [name])) for name in ("bad", "too")]
    await asyncio.sleep(0)
    gate.set()
    for one in bad:
        with pytest.raises(StorageFull):
            await one
    await writer.put("later", ["bad"])
    await writer.quiet()
    assert done == ["a", "later"]


async def test_writes_that_would_wait_behind_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MOST_WAITING", 2)
    gate = asyncio.Event()

    async def write(works: Sequence[str]) -> None:
        await gate.wait()

    writer = Writer(write)
    first = asyncio.create_task(writer.put("a", ["a"]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(writer.put(name, [name])) for name in "bc"]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 writes wait for the disk"):
        await writer.put("d", ["d"])
    gate.set()
    await asyncio.gather(first, *others)


# Sources.


def test_sources_in_pages_and_by_their_beginning() -> None:
    sources = Sources()
    sources.replace([], [part(name) for name in ("b/1", "a/1", "a/3", "a/2", "c")])
    first, more = sources.page("a/", "", 2)
    assert ([one.name for one in first], more) == (["a/1", "a/2"], "a/2")
    rest, more = sources.page("a/", more, 2)
    assert ([one.name for one in rest], more) == (["a/3"], "")
    assert [one.name for one in sources.page("", "", 9)[0]] == ["a/1", "a/2", "a/3", "b/1", "c"]
    assert sources.page("a/2x", "", 9) == ([], "")


def test_parts_of_older_contents_are_told_until_they_are_gone() -> None:
    sources = Sources()
    old = [part("a", n, of=3, hash_="old", at_s=1.0) for n in range(3)]
    new = [part("a", n, of=2, hash_="new", at_s=2.0) for n in range(1)]
    sources.replace([], old)
    sources.replace([], new)
    (one,), _ = sources.page("", "", 9)
    assert (one.hash, one.here, one.parts, one.stale, one.written_at_s) == ("new", 1, 2, 3, 2.0)
    sources.replace(old, [part("a", 1, of=2, hash_="new", at_s=3.0)])
    (one,), _ = sources.page("", "", 9)
    assert (one.here, one.stale, one.written_at_s) == (2, 0, 3.0)
    sources.replace([*new, part("a", 1, of=2, hash_="new")], [])
    assert len(sources) == 0 and sources.page("", "", 9) == ([], "")


def test_rows_from_nowhere_are_no_source() -> None:
    sources = Sources()
    sources.replace([], [Row(id="x", vector=np.ones(2, np.float32))])
    assert len(sources) == 0
    sources.replace([part("never-seen")], [])
    assert len(sources) == 0


# Recall.


def test_recall_is_the_mean_of_a_sample_taken_once_a_second() -> None:
    recall = Recall()
    assert recall.share == -1.0
    assert [recall.wants(at) for at in (1.0, 1.5, 1.9, 2.0)] == [True, False, False, True]
    recall.compare(["a", "b"], ["a", "b"])
    recall.compare(["a", "x"], ["a", "b"])
    recall.compare([], [])
    assert recall.share == 0.75


# The small files.


def spec(name: str = "docs", **more: object) -> CollectionSpec:
    values = {"namespace": "acme", "name": name, "identity": "1f", "serving": Generation(dimension=3), **more}
    return CollectionSpec(**values)  # type: ignore[arg-type]


def test_collections_outlive_a_restart_and_a_damaged_file_costs_its_own_alone(tmp_path: Path) -> None:
    specs = Specs(tmp_path)
    specs.put(spec(fields={"year": "int"}, replicate_to=("b",), filling=Generation(number=2, dimension=4)))
    specs.put(spec("other"))
    specs.put(replace(spec("other"), description="x"))
    specs.put(spec("gone", identity="2f"))
    specs.drop(specs.get("acme", "gone"))
    (tmp_path / "v_bad.json").write_text('{"namespace": 3}')
    again = Specs(tmp_path)
    assert {one.name: one.description for one in again} == {"docs": "", "other": "x"}
    assert again.get("acme", "docs") == specs.get("acme", "docs")
    assert [one.name for one in again.dropped] == ["gone"]
    with pytest.raises(NotFound, match="no collection 'gone' in namespace 'acme'"):
        again.get("acme", "gone")
    again.forget(again.dropped[0])
    assert not Specs(tmp_path).dropped


def test_a_collection_whose_file_cannot_be_read_is_not_begun_anew(tmp_path: Path) -> None:
    """Another site may offer it again, as it was made there."""
    specs = Specs(tmp_path)
    specs.put(spec())
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(b"\0" * 100)
    again = Specs(tmp_path)
    assert again.damaged == [path]
    with pytest.raises(NotReady, match=r"'docs' is here, and its file .* cannot be read; bring the file back"):
        again.check_free(spec())
    again.check_free(spec(identity="2f"))


def test_a_table_has_a_name_that_milvus_takes_and_that_is_its_own() -> None:
    names = {
        spec().table.name,
        spec(identity="2f").table.name,
        spec("Docs").table.name,
        spec(namespace="b").table.name,
        spec(serving=Generation(number=2, dimension=3)).table.name,
    }
    assert len(names) == 5 and all(name.replace("_", "").isalnum() and len(name) < 40 for name in names)
