"""An index on disk: what only memory has, in one file that is replaced as a whole, beside the files of its slots.

What counts is the file alone: it says how much of the others is part of it, with their checksums, and has its own. One
that is not whole, or of another table, is as good as none; the index is made from the store and the journal then.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearmesh.tls import write_private
from nearmesh_agent.vectors.index.columns import packed, unpacked
from nearmesh_agent.vectors.index.growing import Growing
from nearmesh_agent.vectors.index.lists import Lists
from nearmesh_agent.vectors.index.slots import Slots, View, arena_paths, epochs
from nearmesh_agent.vectors.index.tuning import Trained, Tuned
from nearmesh_agent.vectors.model import Table

FILE = "index.npz"
# Counts up when what is in the file changes.
_FORMAT = 1

_log = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]


def write(view: View, marks: Mapping[str, tuple[int, int]], lists: Lists | None) -> None:
    """`marks`: size and checksum of each of the slots' files when the view was taken. Raises OSError."""
    slots = view.slots
    # First what the file speaks of.
    slots.flush()
    header = {
        "format": _FORMAT,
        "table": _described(slots.table),
        "epoch": slots.epoch,
        "files": {kind: list(mark) for kind, mark in marks.items()},
        "position": view.position,
        "bytes": view.bytes,
        "lists": _lists_header(lists) if lists else None,
    }
    arrays: dict[str, NDArray[Any]] = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "alive": view.alive,
        "scales": view.scales,
        "before": slots.before.first(view.used),
        "ends": slots.ends.first(view.used),
        **_prefixed("ids", packed(slots.ids[: view.used])),
    }
    for name, column in slots.columns.items():
        arrays |= _prefixed(f"column:{name}", column.arrays(view.used))
    if lists:
        arrays |= _prefixed("lists", lists.arrays(view.used))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_private(slots.folder / FILE, buffer.getvalue())
    forget_others(slots)


def read(table: Table, folder: Path) -> tuple[View, Lists | None] | None:
    """As it was saved; None: there is none that can be used, which is told in the log."""
    path = folder / FILE
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            # Of what each array is said to be, NumPy believes all, before it has come to the checksum.
            if broken := arrays.zip.testzip():
                raise ValueError(f"the content of its {broken} has changed")
            view, lists = _restored(table, folder, {name: arrays[name] for name in arrays.files})
            # Of a process that ended before it had saved them.
            forget_others(view.slots)
            return view, lists
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # A RuntimeError is of faiss, where it no longer reads what an older one wrote.
        _log.warning("the index saved in %s cannot be used and is made anew: %s", path, error)
        return None


def next_epoch(folder: Path) -> int:
    """One that no file in the folder is of."""
    return 1 + max(epochs(folder), default=0)


def forget(folder: Path) -> None:
    """What was saved there is not opened again."""
    (folder / FILE).unlink(missing_ok=True)


def forget_others(slots: Slots) -> None:
    """Removes the files of other epochs, which nothing on disk speaks of any more."""
    for epoch in epochs(slots.folder) - {slots.epoch}:
        for path in arena_paths(slots.folder, epoch).values():
            path.unlink(missing_ok=True)


def _restored(table: Table, folder: Path, arrays: Arrays) -> tuple[View, Lists | None]:
    header = json.loads(arrays["header"].tobytes())
    if header["format"] != _FORMAT or header["table"] != _described(table):
        raise ValueError("it is of another table or another version")
    slots = Slots(table, folder, header["epoch"], kept={kind: size for kind, (size, _) in header["files"].items()})
    try:
        for kind, (_, checksum) in header["files"].items():
            if slots.arenas[kind].checksum != checksum:
                raise ValueError(f"the content of its {kind} has changed")
        return _filled(slots, header, arrays)
    except BaseException:
        slots.close()
        raise


def _filled(slots: Slots, header: Mapping[str, Any], arrays: Arrays) -> tuple[View, Lists | None]:
    slots.ids.extend(unpacked(_of("ids", arrays)))
    slots.newest = {id_: slot for slot, id_ in enumerate(slots.ids)}
    slots.before = Growing(np.int64, arrays["before"])
    slots.scales = Growing(np.float32, arrays["scales"])
    slots.ends = Growing(np.int64, arrays["ends"])
    for name, column in slots.columns.items():
        slots.columns[name] = column.restored(_of(f"column:{name}", arrays))
    alive = arrays["alive"]
    view = View(
        slots=slots,
        used=len(slots.ids),
        alive=alive,
        live=int(np.count_nonzero(alive)),
        bytes=header["bytes"],
        position=header["position"],
    )
    about = header["lists"]
    if about is None:
        return view, None
    measured = about["tuned"]
    enough, filtered = ({int(k): rows for k, rows in measured[name].items()} for name in ("enough", "filtered"))
    tuned = Tuned(enough, filtered, measured["rows"])
    return view, Lists.restored(view, _of("lists", arrays), Trained(**about["trained"]), tuned)


def _lists_header(lists: Lists) -> Mapping[str, Any]:
    return {"trained": asdict(lists.trained), "tuned": asdict(lists.tuned)}


def _described(table: Table) -> Mapping[str, Any]:
    """What of a table its index depends on."""
    return {
        "dimension": table.dimension,
        "metric": str(table.metric),
        "fields": {k: str(v) for k, v in table.fields.items()},
    }


def _prefixed(prefix: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def _of(prefix: str, arrays: Arrays) -> Arrays:
    start = f"{prefix}."
    return {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}
