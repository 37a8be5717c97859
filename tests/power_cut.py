"""What a power cut leaves of a folder: what was synced, and nothing else.

As strict as a disk may be: a file has what it had when it was synced last, and a folder lists what it listed when the
folder was. Everything below must be synced by this process through `os.fsync` or `os.fdatasync`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest


class PowerCut:
    """Watches this process's syncs from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._contents: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, os.stat_result]] = {}
        # Held open, so that no inode is used again for another file.
        self._held: list[int] = []
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))

    def leaves(self, folder: Path, target: Path) -> Path:
        """A folder as it would be found now, in `target`, which is made."""
        target.mkdir()
        self._restore(folder.stat().st_ino, target)
        return target

    def close(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held.clear()

    def _watched(self, sync):  # type: ignore[no-untyped-def]
        def synced(file: object) -> None:
            fd = file if isinstance(file, int) else file.fileno()  # type: ignore[attr-defined]
            sync(fd)
            self._note(fd)

        return synced

    def _note(self, fd: int) -> None:
        found = os.fstat(fd)
        if found.st_ino not in self._contents and found.st_ino not in self._folders:
            self._held.append(os.dup(fd))
        if stat.S_ISDIR(found.st_mode):
            listed = Path(f"/proc/self/fd/{fd}")
            self._folders[found.st_ino] = {path.name: path.stat() for path in listed.iterdir()}
        else:
            self._contents[found.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def _restore(self, inode: int, target: Path) -> None:
        for name, found in self._folders.get(inode, {}).items():
            path = target / name
            if stat.S_ISDIR(found.st_mode):
                path.mkdir()
                self._restore(found.st_ino, path)
            else:
                # Named, and never synced: a file of nothing, as many file systems leave it.
                path.write_bytes(self._contents.get(found.st_ino, b""))
