"""A notice in a file: whatever can write one on this machine can tell the node to leave."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nearmesh_agent.notice.notice import MAX_BYTES, NoNotice, Notice, judged, parse

log = logging.getLogger(__name__)

# What its thread's name begins with.
THREAD = "notice-file"


class FileNotice:
    """Looks at one path. Its seconds count from when the file was written, so that one left over is no notice."""

    def __init__(self, path: Path, *, every_s: float, default_s: float, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._every_s = every_s
        self._default_s = default_s
        self._clock = clock
        # What was logged last: each thing is said once.
        self._said = ""

    async def notice(self) -> Notice:
        # In a thread, since the file may lie on a disk that does not answer; in one that no process's end waits for.
        thread = ThreadPoolExecutor(1, thread_name_prefix=THREAD)
        try:
            while True:
                found = await asyncio.get_running_loop().run_in_executor(thread, self.look)
                if found:
                    return found
                await asyncio.sleep(self._every_s)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    def look(self) -> Notice | None:
        """What the file says now."""
        try:
            found = _read(self._path)
            if found is None:
                self._said = ""
                return None
            content, written_s = found
            announced = parse(content, written_s=written_s, default_s=self._default_s)
            return judged(announced, now_s=self._clock())
        except (NoNotice, OSError) as error:
            text = str(error)
            if text.split(" was due")[0] != self._said:
                self._said = text.split(" was due")[0]
                log.warning("no notice in %s: %s", self._path, text)
            return None


def _read(path: Path) -> tuple[bytes, float] | None:
    """The first bytes and when they were written; None where there is no file. Raises NoNotice, OSError."""
    try:
        # A pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise NoNotice("it is not a regular file")
        return os.read(descriptor, MAX_BYTES + 1), facts.st_mtime
    finally:
        os.close(descriptor)
