"""Brings blobs of a version: what the disk knows is copied, the rest transferred; each is hashed as it comes, and put
in its place when it is whole."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from nearmesh.chunks import Chunk, ChunkIndex
from nearmesh.oci import Descriptor
from nearmesh_agent.store import known
from nearmesh_agent.store.disk import CHUNKS
from nearmesh_agent.store.draft import Draft
from nearmesh_agent.store.order import SMALL_BYTES, Means, Order, Progress
from nearmesh_agent.store.pieces import COMING, MISSING, Pieces
from nearmesh_agent.store.planner import Planner
from nearmesh_agent.store.threads import in_thread, to_its_end, together
from nearmesh_agent.store.transfer import Outlets, Transfer

log = logging.getLogger(__name__)

# So much is hashed in one go.
HASH_BYTES = 4 * 1024 * 1024
# As a source: other versions on it.
DISK = "this disk"


class Fetch:
    """For one pull."""

    def __init__(self, means: Means, order: Order, progress: Progress) -> None:
        self._means = means
        self._order = order
        self._progress = progress
        # By digest, where blobs lie that were brought.
        self.places: dict[str, Path] = {}

    async def run(self, blobs: Iterable[Descriptor], index: ChunkIndex, *, share: bool) -> None:
        """With `share`, nodes that are pulling the version too bring their part of it."""
        drafts: dict[str, Draft] = {}
        stop = threading.Event()
        try:
            for blob in blobs:
                pieces = Pieces(blob, _chunks(blob, index))
                draft = drafts[blob.digest] = Draft(self._means.disk.drafts_of(self._order.digest), pieces)
                here = await in_thread(self._means.pool, draft.open)
                for number in here:
                    pieces.arrived(number)
                if here:
                    log.info("taken up model=%s blob=%s chunks=%d", self._order.model, blob.digest, len(here))
                self._progress.blobs.append(pieces)
                self._progress.waiting_bytes -= blob.size_bytes
                self._means.shelf.put(draft)
            if drafts:
                await self._bring(drafts, stop, share=share)
        finally:
            stop.set()
            for digest, draft in drafts.items():
                draft.close()
                self._means.shelf.take(digest)

    async def _bring(self, drafts: Mapping[str, Draft], stop: threading.Event, *, share: bool) -> None:
        news, order, shelf = asyncio.Event(), self._order, self._means.shelf

        def arrived(digest: str, number: int) -> None:
            shelf.arrived(digest, number)
            news.set()

        copies = await in_thread(self._means.pool, self._known, drafts)
        for copy in copies:
            copy.pieces.state[copy.number] = COMING
        news.set()
        transfer = Transfer(
            Planner(self._means.me, [draft.pieces for draft in drafts.values()]),
            drafts,
            Outlets(digest=order.digest, registry=order.registry, peers=order.peers, share=share),
            pool=self._means.reads,
            bandwidth=self._means.bandwidth,
            arrived=arrived,
        )
        try:
            await together(transfer.run(), self._settle(drafts, news), self._copy(copies, drafts, arrived, stop))
        finally:
            for name, size in transfer.brought.items():
                self._progress.add(name, size)

    async def _settle(self, drafts: Mapping[str, Draft], news: asyncio.Event) -> None:
        """Hashes each file as it comes, and puts it in its place when it is whole."""
        left = dict(drafts)
        while left:
            await news.wait()
            news.clear()
            for digest, draft in list(left.items()):
                if not draft.pieces.left:
                    target = self._means.disk.blob(digest)
                    await to_its_end(self._means.pool, draft.finish, target)
                    self.places[digest] = target
                    self._means.shelf.take(digest)
                    del left[digest]
                elif draft.behind_bytes >= HASH_BYTES:
                    await in_thread(self._means.pool, draft.hash_on)

    def _known(self, drafts: Mapping[str, Draft]) -> list[known.Copy]:
        """In a thread: what other versions on this disk have of it."""
        disk = self._means.disk
        indexes = []
        for digest, manifest, folder in disk.manifests():
            if digest != self._order.digest and manifest.chunks:
                files = {file.digest: folder / file.title for file in manifest.files}
                indexes.append((known.read_index(folder / CHUNKS), files.get))
        return known.find((draft.pieces for draft in drafts.values()), indexes) if indexes else []

    async def _copy(
        self,
        copies: Sequence[known.Copy],
        drafts: Mapping[str, Draft],
        arrived: Callable[[str, int], None],
        stop: threading.Event,
    ) -> None:
        loop = asyncio.get_running_loop()

        def came(copy: known.Copy) -> None:
            copy.pieces.arrived(copy.number)
            self._progress.add(DISK, copy.pieces.chunks[copy.number].size_bytes)
            arrived(copy.pieces.digest, copy.number)

        if copies:
            told = partial[Any](loop.call_soon_threadsafe, cast(Any, came))
            await in_thread(self._means.pool, known.copy, copies, drafts, told, stop)
            for copy in copies:
                # What was not there any more, or not right, is fetched.
                if copy.pieces.state[copy.number] == COMING:
                    copy.pieces.state[copy.number] = MISSING


def _chunks(blob: Descriptor, index: ChunkIndex) -> tuple[Chunk, ...]:
    """Raises PackageError where the index does not fit the blob."""
    chunks = index.check(blob.digest, blob.size_bytes)
    if not chunks and 0 < blob.size_bytes <= SMALL_BYTES:
        return (Chunk(0, blob.size_bytes, blob.digest),)
    return chunks
