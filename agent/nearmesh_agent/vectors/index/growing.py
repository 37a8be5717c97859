"""Arrays that grow at their end while others read what is there."""

from __future__ import annotations

import errno
import mmap
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_LEAST_ITEMS = 1024
# A file's room grows by half, and at least by this.
_LEAST_BYTES = 1024 * 1024
# File systems that know nothing of it; that the disk is full is told by the write itself there.
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL)


class Growing:
    """One writer extends it; what readers have taken stays as it is."""

    def __init__(self, dtype: DTypeLike, values: NDArray[Any] | None = None) -> None:
        self._values = np.empty(0, dtype) if values is None else np.ascontiguousarray(values, dtype)
        self._length = len(self._values)

    def __len__(self) -> int:
        return self._length

    def extend(self, values: NDArray[Any]) -> None:
        end = self._length + len(values)
        if end > len(self._values):
            grown = np.empty(max(end, len(self._values) * 3 // 2, _LEAST_ITEMS), self._values.dtype)
            grown[: self._length] = self._values[: self._length]
            self._values = grown
        self._values[self._length : end] = values
        self._length = end

    def first(self, count: int) -> NDArray[Any]:
        """The first `count`, which never change."""
        return self._values[:count]

    @property
    def nbytes(self) -> int:
        return self._values.nbytes


class Arena:
    """Bytes in a file that are only ever added to, and read through the page cache as if they were memory.

    What was there when `flush` returned is on disk. A checksum of everything goes with it, so that a later process can
    tell whether it is still the same. Raises OSError where the disk is full or fails.
    """

    def __init__(self, path: Path, *, kept: int = 0) -> None:
        """`kept`: how much of the file counts; what comes after is of a process that ended before it saved."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        # Up to here there is place on the disk.
        self._reserved = kept
        try:
            if os.fstat(self._fd).st_size < kept:
                raise OSError(f"{path} has less than {kept} bytes")
            self.size = kept
            self.checksum = 0
            self._room(max(kept, 1))
            self.checksum = zlib.crc32(self._bytes[:kept].data)
        except BaseException:
            os.close(self._fd)
            raise

    def reserve(self, more: int) -> None:
        """Has place on the disk for so many bytes after what is there. Raises OSError where there is none."""
        end = self.size + more
        if not more or end <= self._reserved:
            return
        end += -end % _LEAST_BYTES
        try:
            os.posix_fallocate(self._fd, self.size, end - self.size)
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
        self._reserved = end

    def append(self, data: bytes | memoryview) -> int:
        """Where it begins."""
        start, end = self.size, self.size + len(data)
        if end > len(self._bytes):
            self._room(end)
        rest = memoryview(data)
        while rest:
            # Written, not stored through the map: a full disk is an error then, and not the end of the process.
            rest = rest[os.pwrite(self._fd, rest, end - len(rest)) :]
        self.checksum = zlib.crc32(data, self.checksum)
        self.size = end
        return start

    def cut(self, size: int, checksum: int) -> None:
        """Takes back what was appended since it had this size and checksum, before anyone was told of it."""
        self.size, self.checksum = size, checksum

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """At least as much as was there; what was added stays where it is."""
        return self._bytes

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Arrays that were taken from it stay readable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _room(self, least: int) -> None:
        """Maps the file anew, with a hole at its end that takes no place on the disk."""
        # Never a shorter one: what had a place on the disk before the process ended has it still.
        length = max(least, self.size * 3 // 2, self.size + _LEAST_BYTES, os.fstat(self._fd).st_size)
        length += -length % mmap.PAGESIZE
        os.ftruncate(self._fd, length)
        self._bytes: NDArray[np.uint8] = np.frombuffer(
            mmap.mmap(self._fd, length, mmap.MAP_SHARED, mmap.PROT_READ), np.uint8
        )
