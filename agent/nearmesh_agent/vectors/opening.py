"""How a table comes into memory: as it was saved, with what the journal has after that; or, where nothing was saved or
it is damaged, from the store. Blocking.

The journal forgets a write when the store and everything that was saved have it. So what was saved lacks nothing from
before the journal's beginning, and neither does the store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from nearmesh.errors import MeshError, StorageFull
from nearmesh_agent.vectors.ledger import Ledger
from nearmesh_agent.vectors.model import Index, Journal, Store, Table, Write
from nearmesh_agent.vectors.parts import Door, Parts
from nearmesh_agent.vectors.table import OpenTable

log = logging.getLogger(__name__)

# Rows that words are made of at a time.
_ROWS = 2_000


def saved(parts: Parts, table: Table, door: Door) -> OpenTable | None:
    """As it was saved; None where its vectors have to come from the store."""
    index = parts.index(table, door)
    if index is None:
        return None
    lexical = parts.lexical(table)
    return OpenTable(table, index, lexical or parts.new_lexical(table), wordless=lexical is None)


def empty(parts: Parts, table: Table, position: int, door: Door) -> OpenTable:
    """A new one, which knows that there was nothing for it up to `position`; saved, so that it is never missed.

    Raises StorageFull.
    """
    try:
        index, lexical = parts.new_index(table, door), parts.new_lexical(table)
        for one in (index, lexical):
            one.apply(Write(table=table.name), position)
        found = OpenTable(table, index, lexical)
        found.save()
    except OSError as error:
        raise StorageFull(f"the disk has no room for a new collection: {error}") from None
    return found


def go_on(journal: Journal, tables: Collection[OpenTable], ledger: Ledger) -> None:
    """Behind all that was saved, where the journal was lost: a new write with an old position would be taken for one
    that is known. Raises DigestMismatch where only its end is lost."""
    known = max([ledger.position, *(max(one.index.position, one.lexical.position) for one in tables)])
    if journal.position < known:
        log.warning("the journal is lost, and goes on position=%d", known)
        journal.begin_after(known)


def replay(
    journal: Journal,
    tables: Mapping[str, OpenTable],
    ledger: Ledger,
    identities: Mapping[str, str],
) -> int:
    """Tells each of what it lacks, and says how much that was. `identities` are of collections, by serving table."""
    behind = [*(table.position for table in tables.values()), ledger.position]
    count = 0
    for position, write in journal.after(max(min(behind), beginning(journal))):
        table = tables.get(write.table)
        if table and position > table.position:
            table.apply(write, position)
            count += 1
        identity = identities.get(write.table)
        if identity and position > ledger.position:
            ledger.apply(identity, write, position)
    return count


def from_store(
    parts: Parts, store: Store, journal: Journal, table: Table, door: Door, ends: Callable[[], bool] = lambda: False
) -> OpenTable:
    """Made anew; nobody writes to it meanwhile. Where the process `ends`, what is there so far."""
    began_s = time.monotonic()
    index = parts.new_index(table, door)
    try:
        _fill(index, store, journal, table, ends)
    except (MeshError, OSError):
        index.close()
        raise
    found = OpenTable(table, index, parts.new_lexical(table), wordless=True)
    give_words(found)
    found.touch()
    log.info("made anew table=%s rows=%d in %.1f s", table.name, index.size, time.monotonic() - began_s)
    return found


def _fill(index: Index, store: Store, journal: Journal, table: Table, ends: Callable[[], bool]) -> None:
    start = beginning(journal)
    index.apply(Write(table=table.name), start)
    # What it has not flushed, the journal has.
    for rows in store.everything(table.name) if table.name in store.tables() else ():
        index.apply(Write(table=table.name, rows=rows), start)
        if ends():
            break
    for position, write in journal.after(start):
        if write.table == table.name:
            index.apply(write, position)


def give_words(table: OpenTable) -> None:
    """All texts of the index to words that had to be begun anew."""
    if table.wordless:
        for ids in _pages(table.index):
            rows = table.index.rows(ids)
            table.lexical.apply(Write(table=table.table.name, rows=rows), table.index.position)
        table.wordless = False
        table.touch()


def beginning(journal: Journal) -> int:
    """Up to here the store and all that was saved have everything."""
    return journal.first - 1


def _pages(index: Index) -> Iterator[Sequence[str]]:
    after = ""
    while ids := index.select(None, after=after, limit=_ROWS):
        yield ids
        after = ids[-1]
