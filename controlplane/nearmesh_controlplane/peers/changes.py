"""Hears what other control planes wrote to the shared database, and has it read.

A notice names the tables; it comes with the commit. Notices are lost with the connection that they come on, so after
each connection, and from time to time, everything is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

from nearmesh.errors import MeshError
from nearmesh_controlplane.peers.wire import connected
from nearmesh_controlplane.postgresql import CHANNEL

log = logging.getLogger(__name__)

# The safety net.
READ_ALL_EVERY_S = 15.0
RECONNECT_AFTER_S = 0.5
# After a reading: changes of this time are read together, so that many of them are not all that is done.
GATHER_S = 0.2

# Reads these tables anew; None: all.
Read = Callable[[Collection[str] | None], Awaitable[None]]


class Changes:
    """Calls `read` for what others wrote; `author` is by what the own notices are known."""

    def __init__(self, url: str, author: str, read: Read) -> None:
        self._url = url
        self._author = author
        self._read = read

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                async with connected(self._url) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    await self._read(None)
                    async for tables in self._heard(connection):
                        await self._read(tables)
                        await asyncio.sleep(GATHER_S)
            except MeshError as error:
                log.warning("not hearing what other control planes write: %s", error.message)
            await asyncio.sleep(RECONNECT_AFTER_S)

    async def _heard(self, connection: Any) -> AsyncIterator[Collection[str] | None]:
        """What was written, all that has come in so far together; None when it is time to read all."""
        loop = asyncio.get_running_loop()
        all_at_s = loop.time() + READ_ALL_EVERY_S
        while True:
            left_s = max(0.0, all_at_s - loop.time())
            written: set[str] = set()
            # Returns once something came, with whatever came along.
            async for notice in connection.notifies(timeout=left_s, stop_after=1):
                written |= written_by_others(notice.payload, self._author)
            if loop.time() >= all_at_s:
                all_at_s = loop.time() + READ_ALL_EVERY_S
                yield None
            elif written:
                yield written


def written_by_others(payload: str, author: str) -> set[str]:
    """The tables that a notice names; none when it is one's own."""
    try:
        notice = json.loads(payload)
        return set() if notice["author"] == author else set(map(str, notice["tables"]))
    except (ValueError, KeyError, TypeError):
        log.warning("not a notice of a control plane: %.100s", payload)
        return set()
