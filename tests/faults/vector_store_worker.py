"""Writes into a journal whose entries go to Milvus Lite, until it is killed; says what was acknowledged.

    python -m tests.faults.vector_store_worker FOLDER (write|move)

It begins by saying what it found, in a line of JSON, and then says the number of each operation that was acknowledged.
With `move` it goes to another store meanwhile, again and again.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from nearmesh_agent.vectors.model import Write
from nearmesh_agent.vectors.store import migrate, place
from nearmesh_agent.vectors.store.applier import Applier, Pace
from nearmesh_agent.vectors.store.journal import Journal
from nearmesh_agent.vectors.store.lite import LiteStore
from nearmesh_agent.vectors.store.place import Place

from tests.stored_rows import row, table

TABLE = table("killed")
# Has the number of the last operation.
COUNT = "count"
_ROWS, _IDS = 6, 150
# Many files and merges of files in a short time.
_PACE = Pace(rows=60, after_s=0.1)


def operation(number: int) -> Write:
    """Some rows again, and some deletes."""
    names = [f"r{(7 * number + step * step) % _IDS:03d}" for step in range(_ROWS)]
    gone = [f"r{(11 * number + 31 * step) % _IDS:03d}" for step in range(2)]
    return Write(table=TABLE.name, rows=[row(name, number) for name in (*names, COUNT)], deleted=gone)


def applied(state: Mapping[str, int], number: int) -> dict[str, int]:
    """What is there after an operation: by id, which one wrote it."""
    write = operation(number)
    changed = {**state, **{each.id: number for each in write.rows}}
    return {name: by for name, by in changed.items() if name not in write.deleted}


def main(folder: Path, what: str) -> None:
    journal = Journal(folder / "journal", segment_bytes=20_000)
    store = place.current(folder, Place()).open(folder, "node")
    store.create(TABLE)
    applier = Applier(
        journal, store, known=lambda _name: True, saved=lambda: 10**12, settle_s=store.settle_s, pace=_PACE
    )
    applier.flush()
    applier.start()
    assert isinstance(store, LiteStore)
    found = {each.id: each for page in store.scan(TABLE.name) for each in page}
    state = {name: each.origin.part for name, each in found.items()}
    # All of a row is of one operation.
    assert all(each.text == row(name, state[name]).text for name, each in found.items())
    number = state.get(COUNT, 0)
    say({"state": state, "count": store.count(TABLE.name), "lite": store.pid})
    if what == "move":
        threading.Thread(target=keep_moving, args=(folder, applier, store), daemon=True).start()
    while True:
        number += 1
        journal.append_now([operation(number)])
        say(number)


def keep_moving(folder: Path, applier: Applier, store: LiteStore) -> None:
    turn = 0
    while True:
        turn += 1
        to = Place(uri=str(folder / f"other-{turn % 2}.db"))
        if to == place.current(folder, Place()):
            continue
        target = to.open(folder, "node")
        with applier.paused():
            for _ in migrate.migrate(store, target, [TABLE]):
                pass
            place.move(folder, Place(), to)
            applier.use(target, target.settle_s)
        store.close()
        assert isinstance(target, LiteStore)
        store = target


def say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
