"""Makes Milvus Lite's folder outlive a power cut, and clears away at a start what no one can rely on.

Lite syncs its manifest, and neither the files that it names nor the folders that they are in: after a power cut the
manifest may name files that are torn, and those that a compaction took its rows from are gone. Each file is synced here
before its name can be written down. Its log is not synced either; we have a journal of our own, so the log is dropped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nearmesh.errors import DigestMismatch, NotInstalled
from nearmesh.tls import fsync_folder, write_private

# There after an orderly end; without it a file that Lite writes in place may be half of one.
_CLOSED = "nearmesh-closed"
_SCHEMA, _MANIFEST, _COLLECTIONS = "schema.json", "manifest.json", "collections"


def clear(folder: Path) -> None:
    """Before Lite opens its folder: removes what a kill or a power cut may have left half done, and its log."""
    closed = folder / _CLOSED
    for collection in _collections(folder):
        if not (collection / _SCHEMA).exists():
            # Half made, or half removed: a collection has rows only when its schema is on disk.
            shutil.rmtree(collection)
            continue
        # What is in it and was not flushed is in our journal, whole, and comes from there.
        shutil.rmtree(collection / "wal", ignore_errors=True)
        if not closed.exists():
            for indexes in collection.glob("partitions/*/indexes"):
                shutil.rmtree(indexes)
    closed.unlink(missing_ok=True)
    for known in (folder, folder.parent):
        fsync_folder(known)


def check(folder: Path) -> None:
    """Raises DigestMismatch where a file is gone or damaged that Lite would do without: it warns in its log, and lacks
    rows, or has deleted ones again."""
    for collection in _collections(folder):
        manifest = collection / _MANIFEST
        # It has one from the first flush on, and a copy of the one before from the second.
        named = [manifest] if manifest.with_name(f"{_MANIFEST}.prev").exists() else []
        try:
            for kind in files(collection):
                named += kind
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(collection, f"{manifest} cannot be read ({error})") from None
        if missing := [path for path in named if not path.exists()]:
            raise _damaged(collection, f"{missing[0]} is gone")


def files(collection: Path) -> tuple[list[Path], list[Path]]:
    """Those that a collection is made of, of rows and of deletes."""
    manifest = collection / _MANIFEST
    partitions = json.loads(manifest.read_bytes())["partitions"] if manifest.exists() else {}
    data, deletes = (
        [collection / "partitions" / name / path for name, kinds in partitions.items() for path in kinds[kind]]
        for kind in ("data_files", "delta_files")
    )
    return data, deletes


def collection(folder: Path, name: str) -> Path:
    """Where it lies."""
    return folder / _COLLECTIONS / name


def _damaged(collection: Path, what: str) -> DigestMismatch:
    return DigestMismatch(
        f"Milvus Lite is damaged, {what}: check the disk and bring {collection} back from a copy, or move it "
        "elsewhere; what only it has is lost then"
    )


def close(folder: Path) -> None:
    """After Lite has closed its folder."""
    for indexes in folder.glob(f"{_COLLECTIONS}/*/partitions/*/indexes"):
        for path in indexes.iterdir():
            _sync(path)
        fsync_folder(indexes)
    write_private(folder / _CLOSED, b"")


def names(folder: Path) -> Iterable[str]:
    """Collections that are there."""
    return [collection.name for collection in _collections(folder) if (collection / _SCHEMA).exists()]


def make_durable(folder: Path) -> None:
    """Has this process's Lite sync what it writes below the folder. Raises NotInstalled for a Lite of other insides."""
    from milvus_lite.storage import data_file, delta_file

    for module in (data_file, delta_file):
        if not hasattr(module, "pq"):
            raise NotInstalled("this milvus-lite cannot be made durable: pip install 'nearmesh-agent[vectors]'")
        module.pq = _Synced(module.pq, folder)


class _Synced:
    """pyarrow's Parquet, as Lite's two modules that write files use it."""

    def __init__(self, parquet: Any, folder: Path) -> None:
        self._parquet, self._folder = parquet, folder
        self.read_table = parquet.read_table

    def write_table(self, table: Any, path: str) -> None:
        """On disk when it returns, with the folders that lead to it."""
        self._parquet.write_table(table, path)
        _sync(Path(path))
        for parent in Path(path).parents:
            fsync_folder(parent)
            if parent == self._folder:
                return


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _collections(folder: Path) -> list[Path]:
    return [path for path in sorted((folder / _COLLECTIONS).glob("*")) if path.is_dir()]
