"""A blob on its way to this disk: a file of its full size whose chunks arrive in any order, each byte written once.

Beside it lies a journal, a line for each chunk that was written. After a kill or a power cut the chunks in it are
hashed again: a line may have reached the disk before its chunk did. What they prove is not fetched again. The file gets
its name among the blobs when all of it has been hashed in one go and is on the disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

from nearmesh.errors import DigestMismatch
from nearmesh.tls import fsync_folder
from nearmesh_agent.store.pieces import Pieces

# Written to the disk while the rest is still being fetched, so that little is left to do at the end.
SYNC_BYTES = 64 * 1024 * 1024


class Draft:
    """Belongs to one transfer; `put` is called by many threads, `hash_on` and `finish` by one at a time."""

    def __init__(self, folder: Path, pieces: Pieces) -> None:
        self.pieces = pieces
        name = pieces.digest.removeprefix("sha256:")
        self.path, self._journal_path = folder / name, folder / f"{name}.done"
        self._lock = threading.Lock()
        self._fd = self._journal = -1
        self._here = bytearray(len(pieces.chunks))
        # Chunks that were hashed in a row from the first on.
        self._hashed = 0
        self._sha = hashlib.sha256()
        self._unsynced_bytes = 0

    def open(self) -> list[int]:
        """The numbers of the chunks that are here from an earlier time. Raises OSError, also for a full disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        size = self.pieces.blob.size_bytes
        if os.fstat(self._fd).st_size != size:
            # Another file, or none: what the journal says is not of this one.
            self._journal_path.unlink(missing_ok=True)
            os.ftruncate(self._fd, 0)
            _take_room(self._fd, size)
        found = self._proven(self._read_journal())
        for number in found:
            self._here[number] = 1
        self._journal = os.open(self._journal_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if os.fstat(self._journal).st_size:
            # The last line may be torn; the next one is not to be its end.
            os.write(self._journal, b"\n")
        return found

    def put(self, number: int, data: memoryview) -> bool:
        """Writes a chunk if it is the right one; False once the draft was closed. Raises DigestMismatch, OSError."""
        chunk = self.pieces.chunks[number]
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if digest != (chunk.digest or digest) or len(data) != chunk.size_bytes:
            name = self.pieces.blob.title or self.pieces.digest
            raise DigestMismatch(
                f"{name} is {self.pieces.digest}; from its byte {chunk.offset} on came {digest}, wanted {chunk.digest}"
            )
        with self._lock:
            if self._fd < 0:
                return False
            if not self._here[number]:
                _write(self._fd, data, chunk.offset)
                os.write(self._journal, f"{number} {digest}\n".encode())
                self._here[number] = 1
                self._unsynced_bytes += chunk.size_bytes
        return True

    def has(self, number: int) -> bool:
        return bool(self._here[number])

    def read(self, number: int) -> bytes:
        """A chunk that is here; b"" once the draft was closed."""
        chunk = self.pieces.chunks[number]
        with self._lock:
            return _read(self._fd, chunk.size_bytes, chunk.offset) if self._fd >= 0 else b""

    @property
    def behind_bytes(self) -> int:
        """What could be hashed now."""
        end = self._here.find(0, self._hashed)
        last = (len(self._here) if end < 0 else end) - 1
        chunks = self.pieces.chunks
        return chunks[last].end - chunks[self._hashed].offset if last >= self._hashed else 0

    def hash_on(self) -> None:
        """Hashes what lies in a row, and has the disk write what came since the last time."""
        while self._hashed < len(self._here) and self._here[self._hashed]:
            data = self.read(self._hashed)
            if not data:
                return
            self._sha.update(data)
            self._hashed += 1
        if self._unsynced_bytes >= SYNC_BYTES:
            self._unsynced_bytes = 0
            os.fdatasync(self._fd)

    def finish(self, target: Path) -> None:
        """Puts the file, of which every chunk is here, in its place. Raises DigestMismatch, after which it is gone."""
        self.hash_on()
        found = "sha256:" + self._sha.hexdigest()
        if found != self.pieces.digest:
            self.discard()
            name = self.pieces.blob.title or "a file"
            raise DigestMismatch(f"{name} is {self.pieces.digest}, what came makes {found}")
        os.fsync(self._fd)
        self.close()
        self.path.chmod(0o644)
        self.path.replace(target)
        fsync_folder(target.parent)
        self._journal_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leaves what is here for the next time. Safe to repeat."""
        with self._lock:
            for fd in (self._fd, self._journal):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._journal = -1

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
        self._journal_path.unlink(missing_ok=True)

    def _read_journal(self) -> dict[int, str]:
        try:
            data = self._journal_path.read_bytes()
        except FileNotFoundError:
            return {}
        found = {}
        # The last one is empty, or torn.
        for line in data.split(b"\n")[:-1]:
            number, _, digest = line.partition(b" ")
            if number.isdigit() and len(number) < 10 and int(number) < len(self._here):
                found[int(number)] = digest.decode("ascii", "replace")
        return found

    def _proven(self, journal: dict[int, str]) -> list[int]:
        found = []
        for number, digest in sorted(journal.items()):
            chunk = self.pieces.chunks[number]
            if digest == (chunk.digest or digest):
                data = _read(self._fd, chunk.size_bytes, chunk.offset)
                if "sha256:" + hashlib.sha256(data).hexdigest() == digest:
                    found.append(number)
        return found


def _take_room(fd: int, size: int) -> None:
    """A disk that is too small says so now, and not after an hour."""
    if size:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(fd, size)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _read(fd: int, size: int, offset: int) -> bytes:
    found = os.pread(fd, size, offset)
    while 0 < len(found) < size:
        more = os.pread(fd, size - len(found), offset + len(found))
        if not more:
            break
        found += more
    return found
