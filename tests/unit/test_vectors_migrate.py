"""Moving rows from one store to another: what differs is copied, all is compared, and a broken move goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearmesh_agent.vectors.model import Row, Store, Table, Where, Write
from nearmesh_agent.vectors.store import migrate, place
from nearmesh_agent.vectors.store.migrate import Phase, Progress
from nearmesh_agent.vectors.store.place import Place

from nearmesh.errors import ConfigError, EngineFailure, InvalidInput, PackageError, Unreachable
from tests.stored_rows import row, table, told


class Kept:
    """A store in memory that counts what is written to it."""

    def __init__(self, *rows: Row) -> None:
        self.rows = {each.id: each for each in rows}
        self.written = self.flushed = 0
        self.breaks_after = 10**9

    def create(self, table: Table) -> None: ...

    def write(self, writes: Sequence[Write]) -> None:
        for write in writes:
            for each in write.rows:
                if self.written == self.breaks_after:
                    raise Unreachable("the target went away")
                self.rows[each.id] = each
                self.written += 1
            for name in write.deleted:
                del self.rows[name]

    def flush(self) -> None:
        self.flushed = len(self.rows)

    def count(self, table: str, where: Where | None = None) -> int:
        return len(self.rows)

    def scan(self, table: str, *, after: str = "", batch: int = 1000) -> Iterator[Sequence[Row]]:
        names = sorted(self.rows)
        for begin in range(0, len(names), 3):
            yield [self.rows[name] for name in names[begin : begin + 3]]


def moved(source: Kept, target: Kept) -> list[Progress]:
    return list(migrate.migrate(as_store(source), as_store(target), [table()]))


def as_store(kept: Kept) -> Store:
    return kept  # type: ignore[return-value]


def content(kept: Kept) -> list[object]:
    return [told(kept.rows[name]) for name in sorted(kept.rows)]


names = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 2), max_size=12)


@given(names, names)
def test_whatever_the_target_had_it_has_what_the_source_has(here: dict[str, int], there: dict[str, int]) -> None:
    source, target = (Kept(*(row(name, seed) for name, seed in some.items())) for some in (here, there))
    told_of = moved(source, target)
    assert content(target) == content(source)
    # What was there already, just so, was passed over.
    assert target.written == sum(there.get(name) != seed for name, seed in here.items())
    assert target.flushed == len(here)
    assert told_of[-1] == Progress("books", len(here), len(here), Phase.VERIFYING)
    assert source.written == 0


def test_a_move_that_broke_off_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_BATCH_ROWS", 4)
    source, target = Kept(*(row(f"r{number:02d}") for number in range(20))), Kept()
    target.breaks_after = 10
    with pytest.raises(Unreachable):
        moved(source, target)
    target.breaks_after = 10**9
    moved(source, target)
    assert target.written == 20
    assert content(target) == content(source)


def test_how_far_it_is_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_BATCH_ROWS", 4)
    found = moved(Kept(*(row(f"r{number}") for number in range(9))), Kept())
    assert [(one.done, one.phase) for one in found] == [
        *((done, Phase.COPYING) for done in (0, 4, 8, 9)),
        *((done, Phase.VERIFYING) for done in (4, 8, 9)),
    ]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(row("a"), text="secret"), "its text"),
        (replace(row("a"), vector=np.nextafter(row("a").vector, np.float32(1))), "its vector"),
        (replace(row("a"), fields={**row("a").fields, "pages": 7}), "its fields"),
        (replace(row("a"), written_at_s=1.0), "its written_at_s"),
        (None, "one store has it"),
    ],
)
def test_a_target_that_gives_back_something_else_is_not_used(other: Row | None, says: str) -> None:
    source, target = Kept(row("a")), Kept(*([other] if other else []))
    with pytest.raises(EngineFailure, match=f"row 'a' of 'books' differs after it was copied \\({says}") as failed:
        list(migrate.verify(as_store(source), as_store(target), table()))
    assert "secret" not in failed.value.message


def test_a_store_that_gives_rows_out_of_order_is_found_out() -> None:
    class Disorderly(Kept):
        def scan(self, table: str, *, after: str = "", batch: int = 1000) -> Iterator[Sequence[Row]]:
            yield [row("b"), row("a")]

    with pytest.raises(EngineFailure, match="gives row 'a' of 'books' after 'b'"):
        moved(Kept(row("a"), row("b")), Disorderly())


SERVER = Place(uri="http://milvus:19530", token_variable="MILVUS_TOKEN")


def test_a_move_holds_until_the_configuration_names_another_store(tmp_path: Path) -> None:
    configured = Place()
    assert place.current(tmp_path, configured) == configured
    place.move(tmp_path, configured, SERVER)
    assert place.current(tmp_path, configured) == SERVER
    # Whoever writes it into the configuration means it so.
    assert place.current(tmp_path, Place(uri=SERVER.uri)) == Place(uri=SERVER.uri)
    # Back again.
    place.move(tmp_path, configured, configured)
    assert place.current(tmp_path, configured) == configured


def test_a_damaged_record_of_a_move_is_told(tmp_path: Path) -> None:
    (tmp_path / place.Moved.FILE).write_bytes(b'{"uri": ')
    with pytest.raises(PackageError, match=r"moved\.json"):
        place.current(tmp_path, Place())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Place(uri="milvus:19530"), "neither http://HOST:PORT nor the whole path"),
        (Place(uri="some/milvus.db"), "neither http://HOST:PORT nor the whole path"),
        (Place(uri="/data/milvus.db", token_variable="T"), "takes no token"),
        (Place(uri="https://root:secret@milvus:19530"), "holds no user and password"),
    ],
)
def test_what_names_no_store_is_refused(asked: Place, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        asked.check()


def test_a_token_that_is_not_there_is_told_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is to be in MILVUS_TOKEN, which is not set here"):
        SERVER.open(tmp_path, "node", {})
    SERVER.open(tmp_path, "node", {"MILVUS_TOKEN": "root:Milvus"}).close()
