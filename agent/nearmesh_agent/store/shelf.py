"""What this node can hand to others: blobs on its disk, whole or on their way, and those who wait for a part of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from nearmesh_agent.store.draft import Draft

# In place of a chunk's number: the blob itself begins to come, or has come.
_BLOB = -1


class Shelf:
    """Belongs to one event loop."""

    def __init__(self, whole: Callable[[str], Path | None]) -> None:
        """`whole` finds the file of a blob that is here, all of it, by its digest."""
        self._whole = whole
        self._drafts: dict[str, Draft] = {}
        self._waiting: dict[tuple[str, int], set[asyncio.Future[None]]] = {}

    def whole(self, digest: str) -> Path | None:
        return self._whole(digest)

    def draft(self, digest: str) -> Draft | None:
        return self._drafts.get(digest)

    def put(self, draft: Draft) -> None:
        """The blob begins to come."""
        self._drafts[draft.pieces.digest] = draft
        self._wake(draft.pieces.digest, _BLOB)

    def arrived(self, digest: str, number: int) -> None:
        """A chunk of it is here."""
        self._wake(digest, number)

    def take(self, digest: str) -> None:
        """It is whole, or does not come any more. Safe to repeat."""
        if self._drafts.pop(digest, None):
            for key in [key for key in self._waiting if key[0] == digest]:
                self._wake(*key)

    async def begun(self, digest: str, wait_s: float) -> bool:
        """Waits for the blob to be here or to begin to come; False if it did not in time."""
        return await self._wait((digest, _BLOB), wait_s, lambda: digest in self._drafts or bool(self._whole(digest)))

    async def has(self, draft: Draft, number: int, wait_s: float) -> bool:
        """Waits for a chunk; False if it did not come in time. True as well when the draft is at its end."""
        digest = draft.pieces.digest
        return await self._wait(
            (digest, number), wait_s, lambda: draft.has(number) or self._drafts.get(digest) is not draft
        )

    def _wake(self, digest: str, number: int) -> None:
        for waiter in self._waiting.pop((digest, number), ()):
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self, key: tuple[str, int], wait_s: float, there: Callable[[], bool]) -> bool:
        if there() or wait_s <= 0:
            return there()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(waiter)
        try:
            async with asyncio.timeout(wait_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            left = self._waiting.get(key, set())
            left.discard(waiter)
            if not left:
                self._waiting.pop(key, None)
        return there()
