"""A site's vectors made of dicts, as the parts in the product are to behave; what is on disk outlives a keeper."""

from __future__ import annotations

import ast
import asyncio
import errno
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from nearmesh_agent.vectors.engine import EngineIndex
from nearmesh_agent.vectors.model import Clock, FieldType, Found, Index, Metric, Row, Store, Table, Vector, Where, Write
from nearmesh_agent.vectors.parts import Door

from nearmesh.errors import InvalidInput, NotFound, StorageFull


class Dict:
    """Rows by id, as index and as store."""

    def __init__(self, table: Table, rows: Iterable[Row] = (), position: int = 0) -> None:
        self.table, self.position = table, position
        self._rows = {row.id: row for row in rows}

    def put(self, write: Write) -> None:
        for row in write.rows:
            self._rows[row.id] = row
        for name in write.deleted:
            self._rows.pop(name, None)

    def rows(self, ids: Iterable[str], *, vectors: bool = False) -> Sequence[Row]:
        return [self._rows[name] for name in ids if name in self._rows]

    def select(self, where: Where | None, *, after: str = "", limit: int | None = None) -> Sequence[str]:
        found = sorted(i for i, row in self._rows.items() if i > after and (where is None or where.matches(row)))
        return found[:limit]

    def count(self, where: Where | None = None) -> int:
        return len(self.select(where))

    def search(
        self, vector: Vector, k: int, where: Where | None = None, *, exact: bool = False
    ) -> tuple[Sequence[Found], str]:
        rows = self.rows(self.select(where))
        found = [Found(row.id, score(self.table.metric, vector, row.vector)) for row in rows]
        found.sort(key=lambda one: one.score, reverse=self.table.metric is not Metric.L2)
        return found[:k], "exact" if exact else "index"

    def all(self) -> list[Row]:
        return [self._rows[name] for name in sorted(self._rows)]

    @property
    def size(self) -> int:
        return len(self._rows)

    @property
    def bytes(self) -> int:
        return sum(row.vector.nbytes + len(row.text) for row in self._rows.values())


def score(metric: Metric, one: Vector, other: Vector) -> float:
    if metric is Metric.L2:
        return float(np.square(one - other).sum())
    product = float(one @ other)
    return product if metric is Metric.INNER_PRODUCT else product / float(np.linalg.norm(one) * np.linalg.norm(other))


class DictIndex(Dict):
    """`model.Index`."""

    def __init__(self, disk: Disk, table: Table, rows: Iterable[Row] = (), position: int = 0) -> None:
        super().__init__(table, rows, position)
        self._disk = disk
        self.fresh = 0

    def reserve(self, rows: Sequence[Row]) -> None:
        if self._disk.full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def apply(self, write: Write, position: int) -> None:
        assert position >= self.position
        self.put(write)
        self.fresh += len(write.rows)
        self.position = position

    def maintain(self) -> None:
        self.fresh = 0

    def close(self) -> None: ...

    def save(self) -> int:
        if self._disk.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._disk.indexes[self.table.name] = (self.all(), self.position)
        return self.position


class DictLedger:
    """`vectors.ledger.Ledger`."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.deletes, self.position, self._now, self._last = dict(disk.deletes), disk.ledger, disk.now, 0
        self.broken = False

    def now(self) -> int:
        self._now += 1
        return self._now

    def stamped(self, identity: str, rows: Sequence[Row]) -> Sequence[Row]:
        known = self.tombstones(identity, [row.id for row in rows])

        def clock(name: str) -> Clock:
            deleted = known.get(name, 0)
            return Clock(written=self.now(), written_after=deleted, deleted=deleted)

        return [replace(row, clock=clock(row.id)) for row in rows]

    def tombstones(self, identity: str, ids: Iterable[str]) -> Mapping[str, int]:
        return {name: self.deletes[identity, name] for name in ids if (identity, name) in self.deletes}

    def apply(self, identity: str, write: Write, position: int, *, source: str = "", site: str = "") -> None:
        for name in write.deleted:
            self.deletes[identity, name] = write.deleted_at
        self._last += len(write.rows) + len(write.deleted)

    def last(self, identity: str) -> int:
        return self._last

    def save(self, position: int) -> None:
        self.position = position
        self._disk.deletes, self._disk.ledger, self._disk.now = dict(self.deletes), position, self._now

    def drop(self, identity: str) -> None:
        self.deletes = {key: at for key, at in self.deletes.items() if key[0] != identity}

    def close(self) -> None: ...


class DictJournal:
    """`model.Journal`, which can be held up, and be full."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.gate = asyncio.Event()
        self.gate.set()
        self.full = False
        self.groups: list[int] = []

    async def append(self, writes: Sequence[Write]) -> int:
        await self.gate.wait()
        if self.full:
            raise StorageFull("no room")
        self.groups.append(len(writes))
        self._disk.entries.extend(writes)
        return self.position

    def after(self, position: int) -> Iterator[tuple[int, Write]]:
        if position < self._disk.forgotten:
            raise NotFound(f"{position} was forgotten")
        yield from list(enumerate(self._disk.entries, 1))[position:]

    def begin_after(self, position: int) -> None:
        self._disk.entries[:] = [Write(table="")] * position
        self._disk.forgotten = position

    def forget(self, position: int) -> None:
        self._disk.forgotten = max(position, self._disk.forgotten)

    @property
    def position(self) -> int:
        return len(self._disk.entries)

    @property
    def first(self) -> int:
        return self._disk.forgotten + 1

    def close(self) -> None: ...


class DictStore:
    """`model.Store`."""

    def __init__(self, tables: dict[str, Dict]) -> None:
        self._tables = tables

    def tables(self) -> Sequence[str]:
        return list(self._tables)

    def create(self, table: Table) -> None:
        self._tables.setdefault(table.name, Dict(table))

    def drop(self, table: str) -> None:
        self._tables.pop(table, None)

    def write(self, writes: Sequence[Write]) -> None:
        for write in writes:
            self._tables[write.table].put(write)

    def flush(self) -> None: ...

    def get(self, table: str, ids: Sequence[str]) -> Sequence[Row]:
        return self._tables[table].rows(ids)

    def scan(
        self, table: str, *, after: str = "", batch: int = 1000, where: Where | None = None
    ) -> Iterator[Sequence[Row]]:
        found = self._tables[table]
        rows = found.rows(found.select(where, after=after))
        yield from (rows[start : start + batch] for start in range(0, len(rows), batch))

    def everything(self, table: str) -> Iterator[Sequence[Row]]:
        return self.scan(table)

    def count(self, table: str, where: Where | None = None) -> int:
        return len(self._tables[table].select(where))

    def search(self, table: str, vector: Vector, k: int, where: Where | None = None) -> Sequence[Found]:
        return self._tables[table].search(vector, k, where)[0]

    def close(self) -> None: ...


class DictApplier:
    """`parts.Applier`, which goes on when it is told to."""

    failure = ""
    is_paused = False

    def __init__(
        self, journal: DictJournal, store: Store, known: Callable[[str], bool], saved: Callable[[], int]
    ) -> None:
        self._journal, self._store, self._known, self._saved = journal, store, known, saved
        self.visible = journal.first - 1

    def start(self) -> None: ...

    def stop(self) -> None: ...

    @contextmanager
    def paused(self) -> Iterator[None]:
        assert not self.is_paused
        self.is_paused = True
        yield
        self.is_paused = False

    def use(self, store: Store, settle_s: float) -> None:
        assert self.is_paused
        self._store = store

    def flush(self) -> None:
        self.step()

    def step(self) -> None:
        for position, write in self._journal.after(max(self.visible, self._journal.first - 1)):
            if self._known(write.table):
                self._store.write([write])
            self.visible = position

    def forget(self) -> None:
        self._journal.forget(min(self.visible, self._saved()))


class DictLexical:
    """`model.Lexical`: a text counts by the number of the asked words in it."""

    def __init__(self, disk: Disk, table: Table, texts: Mapping[str, str] | None = None, position: int = 0) -> None:
        self._disk, self._table, self._texts, self.position = disk, table, dict(texts or {}), position

    def apply(self, write: Write, position: int) -> None:
        self._texts |= {row.id: row.text for row in write.rows}
        for name in write.deleted:
            self._texts.pop(name, None)
        self.position = position

    def search(self, text: str, k: int, among: Collection[str] | None = None) -> Sequence[Found]:
        asked = set(text.split())
        found = [Found(name, float(len(asked & set(said.split())))) for name, said in self._texts.items()]
        taken = [one for one in found if one.score and (among is None or one.id in among)]
        return sorted(taken, key=lambda one: -one.score)[:k]

    def maintain(self) -> None: ...

    def save(self) -> int:
        self._disk.words[self._table.name] = (dict(self._texts), self.position)
        return self.position

    @property
    def bytes(self) -> int:
        return sum(map(len, self._texts.values()))

    def close(self) -> None: ...


@dataclass
class Disk:
    """What is left when a process is killed."""

    entries: list[Write] = field(default_factory=list)
    forgotten: int = 0
    indexes: dict[str, tuple[list[Row], int]] = field(default_factory=dict)
    words: dict[str, tuple[dict[str, str], int]] = field(default_factory=dict)
    deletes: dict[tuple[str, str], int] = field(default_factory=dict)
    ledger: int = 0
    now: int = 0
    # By address, and the one in use.
    stores: dict[str, dict[str, Dict]] = field(default_factory=dict)
    uri: str = ""
    full: bool = False

    @property
    def store(self) -> dict[str, Dict]:
        return self.stores.get(self.uri, {})


class Equal:
    """The one filter that is read: `field == value`."""

    def __init__(self, text: str, fields: Mapping[str, FieldType]) -> None:
        name, _, value = text.partition(" == ")
        if name not in fields or not value:
            raise InvalidInput(f"{text!r} is no filter")
        self._name, self._value = name, ast.literal_eval(value)

    def milvus(self) -> str:
        return f"{self._name} == {self._value!r}"

    def matches(self, row: Row) -> bool:
        return row.fields.get(self._name) == self._value


class DictParts:
    """`parts.Parts`."""

    def __init__(self, disk: Disk | None = None, *, engine: bool = False) -> None:
        """With `engine` the store is searched itself."""
        self.disk = disk or Disk()
        self.engine = engine
        # What the store says as it is opened.
        self.store_error: Exception | None = None

    def journal(self) -> DictJournal:
        return DictJournal(self.disk)

    def ledger(self) -> DictLedger:
        return DictLedger(self.disk)

    def store(self) -> DictStore:
        if self.store_error:
            raise self.store_error
        return DictStore(self.disk.stores.setdefault(self.disk.uri, {}))

    def elsewhere(self, uri: str, token_variable: str) -> DictStore | None:
        if not uri.startswith("http"):
            raise InvalidInput(f"{uri!r} is no store")
        return None if uri == self.disk.uri else DictStore(self.disk.stores.setdefault(uri, {}))

    def use_elsewhere(self, uri: str, token_variable: str) -> None:
        self.disk.uri = uri

    def applier(
        self, journal: DictJournal, store: Store, *, known: Callable[[str], bool], saved: Callable[[], int]
    ) -> DictApplier:
        return DictApplier(journal, store, known, saved)

    def index(self, table: Table, door: Door) -> Index | None:
        if self.engine:
            return EngineIndex(table, door.the_store, door.visible)
        found = self.disk.indexes.get(table.name)
        return DictIndex(self.disk, table, *found) if found else None

    def new_index(self, table: Table, door: Door) -> Index:
        if self.engine:
            return EngineIndex(table, door.the_store, door.visible)
        return DictIndex(self.disk, table)

    def lexical(self, table: Table) -> DictLexical | None:
        found = self.disk.words.get(table.name)
        return DictLexical(self.disk, table, *found) if found else None

    def new_lexical(self, table: Table) -> DictLexical:
        return DictLexical(self.disk, table)

    def read_filter(self, text: str, fields: Mapping[str, FieldType]) -> Where:
        return Equal(text, fields)

    def remove(self, table: Table) -> None:
        self.disk.indexes.pop(table.name, None)
        self.disk.words.pop(table.name, None)
