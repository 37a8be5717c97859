"""The store on Milvus Lite, embedded: a process of its own that is kept running, below a folder of the node's.

Lite appends a row with a key that it has, and the newest counts; its own upsert reads each row first. What it was given
and has not flushed is gone with its process: `flush` answers only for what was written in the life of one process.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nearmesh.errors import EngineFailure, NotReady, Unreachable
from nearmesh.process import leashed
from nearmesh_agent.vectors.model import Found, Row, Table, Vector, Where, Write
from nearmesh_agent.vectors.store import disk, indexes, lite_files, lite_process, requests
from nearmesh_agent.vectors.store.milvus import MilvusStore, parts_of

log = logging.getLogger(__name__)

# Behind requests, and behind searches on the same node.
_NICE = 5
# Importing takes a second or two; so much more on a machine that is busy.
_START_S = 60.0
# It writes out what it has in memory.
_STOP_S = 30.0
_AGAIN_S, _AGAIN_AT_MOST_S = 0.5, 30.0
# From the moment that a process's sockets close until one who waits for its end has been told.
_NOTICED_S = 2.0
# Linux keeps the path of a socket in 108 bytes; a folder's random end and the socket's own name are still to come.
_SOCKET_FOLDER_BYTES = 85
# Lite sorts all keys for each page.
_PAGE_ROWS = 4000
# From its files, at a time.
_READ_ROWS = 1000


class LiteStore(MilvusStore):
    """Starts at once and is ready some time later; calls wait for it. Raises NotReady when it does not come."""

    engine = "Milvus Lite"
    kinds = indexes.LITE

    def __init__(self, folder: Path) -> None:
        # It sees at once what it was given, but may lose it until it is flushed.
        super().__init__(str(folder), settle_s=math.inf)
        self._folder = folder
        self._process = LiteProcess(folder, gone=self._disconnect)
        # Of Lite's process when the first of what is not flushed was written.
        self._life = 0
        # Lite takes one writer for a table, and a reader beside it may miss what is just being flushed.
        self._one = threading.RLock()

    def tables(self) -> Sequence[str]:
        """From the folder: asked itself, Lite reads all of them into memory first."""
        self._process.ready()
        return list(disk.names(self._folder))

    def create(self, table: Table) -> None:
        with self._one:
            super().create(table)

    def drop(self, table: str) -> None:
        with self._one:
            super().drop(table)

    def write(self, writes: Sequence[Write]) -> None:
        with self._one, self._in_one_life():
            super().write(writes)

    def flush(self) -> None:
        """On disk, also after a loss of power. Raises NotReady when Lite has begun anew: write again."""
        with self._one, self._in_one_life():
            super().flush()

    def get(self, table: str, ids: Sequence[str]) -> Sequence[Row]:
        with self._one:
            return super().get(table, ids)

    def scan(
        self, table: str, *, after: str = "", batch: int = 1000, where: Where | None = None
    ) -> Iterator[Sequence[Row]]:
        pages = super().scan(table, after=after, batch=max(batch, _PAGE_ROWS), where=where)
        while True:
            with self._one:
                page = next(pages, None)
            if page is None:
                return
            yield from parts_of(page, batch)

    def everything(self, table: str) -> Iterator[Sequence[Row]]:
        # It clears its folder up before it answers.
        self._process.ready()
        return lite_files.rows(disk.collection(self._folder, table), self._known(table), _READ_ROWS)

    def count(self, table: str, where: Where | None = None) -> int:
        with self._one:
            return super().count(table, where)

    def search(self, table: str, vector: Vector, k: int, where: Where | None = None) -> Sequence[Found]:
        with self._one:
            return super().search(table, vector, k, where)

    @property
    def pid(self) -> int:
        """Of Lite's process."""
        return self._process.pid

    def close(self) -> None:
        super().close()
        self._process.close()

    @contextmanager
    def _in_one_life(self) -> Iterator[None]:
        """Raises NotReady where what is not flushed was not all given to the process that is there at the end."""
        self._process.ready()
        if not self._unflushed:
            self._life = self._process.life
        self._check_life()
        yield
        self._check_life()

    def _check_life(self) -> None:
        if self._process.life != self._life:
            self._unflushed.clear()
            raise NotReady(f"Milvus Lite at {self._folder} began anew: what it had not flushed is to be written again")

    def _ask(self, method: str, table: str, **arguments: Any) -> Any:
        """Once more when its process ended meanwhile: another one has the same to read."""
        try:
            return super()._ask(method, table, **arguments)
        except Unreachable:
            return super()._ask(method, table, **arguments)

    def _put(self, table: Table, rows: Sequence[Row]) -> None:
        self._send("batch_insert", table, insert_param=requests.insert(self._named(table.name), table, rows))

    def _address(self) -> str:
        return self._process.ready()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What a call says whose connection was closed under it, since its process ended, is pymilvus's affair.

        Whoever is told Unreachable, and calls again, meets another process where this one ended.
        """
        life = self._process.life
        try:
            with super()._translated():
                yield
        except Unreachable:
            self._process.notice(life, _NOTICED_S)
            raise
        except EngineFailure as error:
            if self._process.answers(life):
                raise
            raise Unreachable(f"Milvus Lite at {self._folder} ended: {error.message}") from error


class LiteProcess:
    """Keeps Lite's process running on a folder; each has an address of its own, so that no call is for the next one."""

    def __init__(self, folder: Path, *, gone: Callable[[], None]) -> None:
        self._folder, self._gone = folder, gone
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = self._closing = self._refused = False
        self._why = "it is starting"
        # Counts its processes.
        self.life = 0
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._private = private_folder(folder)
        # The kernel ends a child with the thread that started it.
        self._keeper = threading.Thread(target=self._keep, name="milvus-lite", daemon=True)
        self._keeper.start()

    def ready(self, within_s: float = _START_S) -> str:
        """Its address, when it answers. Raises NotReady that says why it does not, at once where it said so itself."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready or self._closing or self._refused, within_s)
            if not self._is_ready:
                raise NotReady(f"Milvus Lite at {self._folder} does not answer: {self._why}")
            return f"unix:{self._socket}"

    @property
    def _socket(self) -> Path:
        return self._private / str(self.life)

    @property
    def pid(self) -> int:
        """0 before the first."""
        return self._process.pid if self._process is not None else 0

    def answers(self, life: int) -> bool:
        """Whether the one of this number does."""
        with self._changed:
            return self._is_ready and self.life == life

    def notice(self, life: int, within_s: float) -> None:
        """Returns when it was noticed that the one of this number ended, or after so long where it did not."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_ready or self.life != life, within_s)

    def close(self) -> None:
        """Has it write out what it has. Safe to repeat."""
        with self._changed:
            self._closing, self._is_ready, self._why = True, False, "it is closed"
            self._changed.notify_all()
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                # Nothing is lost: the journal has it.
                process.kill()
        self._keeper.join()
        shutil.rmtree(self._private, ignore_errors=True)

    def _keep(self) -> None:
        again_s = _AGAIN_S
        while True:
            try:
                process = self._start()
            except OSError as error:
                again_s = self._went(f"its process does not start: {error}", 1, again_s)
                continue
            if process is None:
                return
            assert process.stdout is not None
            with process.stdout:
                said = process.stdout.readline().decode("utf-8", "replace").strip()
                if said == lite_process.READY:
                    again_s = _AGAIN_S
                    self._came(process)
                process.wait()
            again_s = self._went(said, process.returncode, again_s)

    def _start(self) -> subprocess.Popen[bytes] | None:
        """None when it was closed meanwhile."""
        with self._changed:
            if self._closing:
                return None
            self.life += 1
            command = [sys.executable, "-m", lite_process.__name__, str(self._folder), str(self._socket)]
            self._process = subprocess.Popen(
                leashed(command, nice=_NICE), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
            )
            return self._process

    def _came(self, process: subprocess.Popen[bytes]) -> None:
        with self._changed:
            self._is_ready, self._refused = not self._closing, False
            self._changed.notify_all()
        log.info("Milvus Lite answers folder=%s pid=%d", self._folder, process.pid)

    def _went(self, said: str, code: int, again_s: float) -> float:
        """Waits before the next one; how long to wait after that."""
        with self._changed:
            if self._closing:
                return again_s
            self._is_ready, self._refused = False, said not in ("", lite_process.READY)
            self._why = said if self._refused else f"its process ended with {code}"
            self._changed.notify_all()
        log.warning("Milvus Lite ended, again in %.1f s folder=%s %s", again_s, self._folder, self._why)
        # Nobody is to wait for an answer of it.
        self._gone()
        with self._changed:
            self._changed.wait_for(lambda: self._closing, again_s)
        return min(2 * again_s, _AGAIN_AT_MOST_S)


def private_folder(folder: Path) -> Path:
    """For sockets, and for nobody else: beside Lite's folder, or where all have theirs if its name is too long.

    Those that killed processes have left beside it go.
    """
    for left in folder.parent.glob(f".{folder.name}.*"):
        pid = left.name.removeprefix(f".{folder.name}.").partition(".")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    name = f".{folder.name}.{os.getpid()}."
    is_short = len(os.fsencode(folder.parent / name)) <= _SOCKET_FOLDER_BYTES
    return Path(tempfile.mkdtemp(prefix=name, dir=folder.parent if is_short else None))
