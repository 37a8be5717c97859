"""What a stream of changes waits for: that there is something new, and that the node that gets it has what was sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from nearmesh.errors import InvalidInput
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.across.receipts import Receipts


@contextmanager
def listening(waiting: set[asyncio.Event]) -> Iterator[asyncio.Event]:
    """An event that is among those for as long."""
    event = asyncio.Event()
    waiting.add(event)
    try:
        yield event
    finally:
        waiting.discard(event)


class Reading:
    """What a node has acknowledged."""

    def __init__(self, receipts: Receipts, peer: Here) -> None:
        self._receipts = receipts
        self._peer = peer
        self._more = asyncio.Event()
        self.acknowledged = 0

    async def take(self, number: int) -> None:
        self.acknowledged = number
        taken = partial(self._receipts.acknowledged, self._peer.node, self._peer.site, number, time.time())
        await asyncio.to_thread(taken)
        self._more.set()

    async def run(self, requests: AsyncIterator[pb.ChangesRequest]) -> None:
        async for request in requests:
            if request.acknowledged < self.acknowledged:
                raise InvalidInput(f"{request.acknowledged} is acknowledged after {self.acknowledged}")
            await self.take(request.acknowledged)

    async def until(self, number: int, reader: asyncio.Task[None]) -> None:
        """It has that, or asks no more."""
        while self.acknowledged < number and not reader.done():
            self._more.clear()
            await first_of(self._more.wait(), reader)


async def first_of(waited: Coroutine[Any, Any, Any], reader: asyncio.Task[None]) -> None:
    """Returns when either is over."""
    task = asyncio.ensure_future(waited)
    try:
        await asyncio.wait({task, reader}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()


def parts(changes: Sequence[pb.Change], most_bytes: int) -> Iterator[list[pb.Change]]:
    part: list[pb.Change] = []
    size = 0
    for one in changes:
        more = one.ByteSize()
        if part and size + more > most_bytes:
            yield part
            part, size = [], 0
        part.append(one)
        size += more
    if part:
        yield part
