"""What was acknowledged and is not yet in the store: appended to files of our own, synced before anybody is told.

One thread writes. Whoever asks while the disk is busy is written together with the others who do, and one sync is for
all of them. After a sync that failed nobody knows what is on disk: nothing is taken any more until a restart has read
it again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

from nearmesh.errors import DigestMismatch, MeshError, NotFound, NotReady, Overloaded, StorageFull
from nearmesh.process import only_one
from nearmesh.tls import fsync_folder
from nearmesh_agent.vectors.model import Write
from nearmesh_agent.vectors.store import records, segments

# Small files are forgotten sooner, and less of one is passed over by who reads on in it.
SEGMENT_BYTES = 16 * 1024 * 1024
# What the store has not taken yet may grow to this, some million rows, while Milvus is away.
MAX_BYTES = 4 * 1024 * 1024 * 1024
# The file in use is left for a new one when all of it is forgotten, from this size on.
_WORTH_LEAVING_BYTES = 256 * 1024
# Milvus may be back by then.
_RETRY_AFTER_MS = 1_000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_Waiting = tuple[Sequence[Write], "Future[int]"]


class Journal:
    """One for each node, in a folder that it holds for itself.

    Raises AlreadyRunning where another process holds it, and DigestMismatch where what had been on disk is damaged.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, max_bytes: int = MAX_BYTES) -> None:
        self._folder, self._segment_bytes, self._max_bytes = folder, segment_bytes, max_bytes
        self._held = ExitStack()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fsync_folder(folder.parent)
        self._held.enter_context(only_one(folder, "a journal"))
        # Guards the files; held while the disk is waited for.
        self._files = threading.Lock()
        # Guards what follows it, and tells of more to write, of more on disk, and of the end.
        self._changed = threading.Condition()
        self._queue: list[_Waiting] = []
        self._closing = False
        self._broken = ""
        self._fd, self._size = -1, 0
        self._firsts = segments.firsts(folder)
        self._position = segments.mend(self._path(self._firsts[-1])) if self._firsts else 0
        self._sealed_bytes = sum(self._path(first).stat().st_size for first in self._firsts[:-1])
        self._open_last() if self._firsts else self._begin_file()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @property
    def position(self) -> int:
        """The last that is on disk."""
        return self._position

    @property
    def first(self) -> int:
        """The oldest that is still there; what comes before it is in the store."""
        return self._firsts[0]

    @property
    def size_bytes(self) -> int:
        return self._sealed_bytes + self._size

    async def append(self, writes: Sequence[Write]) -> int:
        """As `append_now`, without holding the event loop."""
        return await asyncio.wrap_future(self._enqueue(writes)) if writes else self._position

    def append_now(self, writes: Sequence[Write]) -> int:
        """On disk when it returns; the position of the last.

        Raises InvalidInput, StorageFull, Overloaded when the store has not taken too much, NotReady after a failure of
        the disk.
        """
        return self._enqueue(writes).result() if writes else self._position

    def after(self, position: int) -> Iterator[tuple[int, Write]]:
        """What was appended after a position and is on disk, in order.

        Raises NotFound when some of it was forgotten, DigestMismatch when it is damaged.
        """
        target, reached = self._position, position
        while reached < target:
            path, before = self._path_of(reached + 1), reached
            for head, payload in self._frames(path, reached):
                if head.position != reached + 1:
                    raise segments.damaged(path, reached + 1)
                reached = head.position
                yield reached, records.decoded(payload)
                if reached == target:
                    return
            if reached == before:
                raise segments.damaged(path, reached + 1)

    def wait(self, position: int, timeout_s: float) -> bool:
        """Until more than `position` is on disk; False when it is not in time. Raises NotReady when it was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._position > position, timeout_s)
            if self._closing:
                raise NotReady(f"the journal {self._folder} is closed")
            return self._position > position

    def begin_after(self, position: int) -> None:
        """Its files are gone, and something that was saved knows more: no position is for two writes.

        Raises DigestMismatch where some of its files are there.
        """
        with self._files:
            if self._position >= self.first:
                raise DigestMismatch(
                    f"the journal {self._folder} ends at entry {self._position}, and what was saved knows up to "
                    f"{position}: bring its files back from a copy, or move all of them elsewhere; what they have and "
                    "the store has not is lost then"
                )
            for first in self._firsts:
                self._path(first).unlink()
            self._firsts.clear()
            self._position = position
            self._begin_file()

    def forget(self, position: int) -> None:
        """Removes files all of which the store and every saved index have."""
        with self._files:
            if self._fd < 0:
                return
            if position >= self._position and self._size >= _WORTH_LEAVING_BYTES and not self._broken:
                self._begin_file()
            while len(self._firsts) > 1 and self._firsts[1] - 1 <= position:
                path = self._path(self._firsts[0])
                size = path.stat().st_size
                path.unlink()
                del self._firsts[0]
                self._sealed_bytes -= size
                # One by one, so that no power cut leaves a hole between those that are kept.
                fsync_folder(self._folder)

    def close(self) -> None:
        """Writes what was asked for until now. Safe to repeat."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        with self._files:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1
        self._held.close()

    def _frames(self, path: Path, after: int) -> Iterator[tuple[records.Head, bytes]]:
        try:
            yield from segments.frames(path, after)
        except FileNotFoundError:
            raise NotFound(f"the journal's {path.name} was forgotten while it was read") from None

    def _enqueue(self, writes: Sequence[Write]) -> Future[int]:
        future: Future[int] = Future()
        with self._changed:
            self._check_open()
            self._queue.append((writes, future))
            self._changed.notify_all()
        return future

    def _check_open(self) -> None:
        if self._broken or self._closing:
            raise NotReady(self._broken or f"the journal {self._folder} is closed: the node is stopping")
        if self.size_bytes >= self._max_bytes:
            raise Overloaded(
                f"the journal holds {self.size_bytes} bytes that Milvus has not taken, the limit is {self._max_bytes}: "
                "write again when Milvus is back",
                retry_after_ms=_RETRY_AFTER_MS,
            )

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                group, self._queue = self._queue, []
            if not group:
                return
            # From here on nobody takes it back.
            self._commit([waiting for waiting in group if waiting[1].set_running_or_notify_cancel()])

    def _commit(self, group: Sequence[_Waiting]) -> None:
        """Writes a group with one sync, and tells each of it."""
        position = self._position
        parts: list[bytes] = []
        written: list[tuple[Future[int], int]] = []
        for writes, future in group:
            try:
                payloads = [records.encoded(write) for write in writes]
            except MeshError as error:
                future.set_exception(error)
                continue
            for payload in payloads:
                position += 1
                parts.extend(records.frame(position, self._position, payload))
            written.append((future, position))
        try:
            self._put(b"".join(parts), position)
        except MeshError as error:
            for future, _ in written:
                future.set_exception(error)
            return
        with self._changed:
            self._changed.notify_all()
        for future, reached in written:
            future.set_result(reached)

    def _put(self, data: bytes, position: int) -> None:
        """On disk when it returns, up to `position`. Raises StorageFull or NotReady."""
        with self._files:
            if self._broken:
                raise NotReady(self._broken)
            try:
                if self._size >= self._segment_bytes:
                    self._begin_file()
                _write_all(self._fd, data)
            except OSError as error:
                self._take_back(error)
                if error.errno in _FULL:
                    raise StorageFull(f"the disk of {self._folder} has no room for {len(data)} bytes more") from None
                raise NotReady(f"{self._folder} cannot be written: {error}") from None
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self._break(error)
                raise NotReady(self._broken) from None
            self._size += len(data)
            # Before the files are let go: whoever forgets up to the last position must not forget these with it.
            self._position = position

    def _take_back(self, error: OSError) -> None:
        """Half a frame must not lie before the next one."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._break(error)

    def _break(self, error: OSError) -> None:
        self._broken = f"the disk of {self._folder} failed ({error}): restart the node when it is well again"

    def _begin_file(self) -> None:
        first = self._position + 1
        path = self._path(first)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        fsync_folder(self._folder)
        if self._fd >= 0:
            os.close(self._fd)
        self._sealed_bytes, self._fd, self._size = self._sealed_bytes + self._size, fd, 0
        self._firsts.append(first)

    def _open_last(self) -> None:
        self._fd = os.open(self._path(self._firsts[-1]), os.O_WRONLY | os.O_APPEND)
        self._size = os.fstat(self._fd).st_size

    def _path(self, first: int) -> Path:
        return self._folder / segments.name(first)

    def _path_of(self, position: int) -> Path:
        """The file that has it."""
        known = [first for first in tuple(self._firsts) if first <= position]
        if not known:
            raise NotFound(f"entry {position} of the journal was forgotten, the oldest that is there is {self.first}")
        return self._path(known[-1])


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
