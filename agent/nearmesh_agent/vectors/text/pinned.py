"""Versions of embedders that collections were made with: served by the node as usual, or loaded beside what it serves.

A query's vector is near to those of its own embedder alone. So while the mesh goes on to a newer version, the node that
has vectors of an older one keeps that one, on its disk and in memory, until the collection has been filled anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path

from nearmesh.errors import MeshError, NotReady
from nearmesh.tls import write_private
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.table import ReplicaTable

log = logging.getLogger(__name__)

# A version stays on the disk for so long after no collection was made with it any more: one that is being made anew
# from the store says nothing of itself meanwhile.
FORGET_S = 3600.0

# Brings a version by model and digest, from the disk or from wherever it can be had, and proves it.
Bring = Callable[[str, str], Awaitable[Replica]]


class PinnedVersions:
    """Of one node; belongs to one event loop."""

    def __init__(
        self,
        table: ReplicaTable,
        bring: Bring,
        path: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`path` is of a file that says after a restart what must stay on the disk, before anybody else can."""
        self._clock = clock
        self._table = table
        self._bring = bring
        self._path = path
        # By digest, loaded here because nothing else serves them.
        self._own: dict[str, Replica] = {}
        self._loads: dict[str, asyncio.Task[Replica]] = {}
        # By digest, until when it stays on the disk.
        self._until_s = dict.fromkeys(_remembered(path) if path else (), clock() + FORGET_S)

    @property
    def digests(self) -> set[str]:
        """Versions that have to stay on the node's disk."""
        return self._until_s.keys() | self._own.keys() | self._loads.keys()

    async def keep(self, digests: Collection[str]) -> None:
        """What collections are made with now; what was loaded for others goes, as does what the node serves itself."""
        now_s, before = self._clock(), set(self._until_s)
        pinned = {digest for digest in digests if digest}
        self._until_s |= dict.fromkeys(pinned, now_s + FORGET_S)
        self._until_s = {digest: until_s for digest, until_s in self._until_s.items() if until_s > now_s}
        if self._path and before != self._until_s.keys():
            await asyncio.to_thread(_remember, self._path, sorted(self._until_s))
        for digest, replica in list(self._own.items()):
            if digest not in pinned or self._table.by_digest(digest) is not None:
                del self._own[digest]
                log.info("no longer kept beside the others model=%s digest=%s", replica.name, digest)
                await replica.close()

    async def get(self, model: str, digest: str) -> Replica:
        """The version, loaded if it has to be; all who need it share the load. Raises NotReady with what is missing."""
        served = self._table.by_digest(digest)
        if served is not None:
            return served
        own = self._own.get(digest)
        if own is not None:
            if own.ready:
                return own
            # Nobody watches over it but whoever needs it: one that hangs or fails is loaded anew.
            del self._own[digest]
            await own.close()
        task = self._loads.get(digest)
        if task is None:
            task = self._loads[digest] = asyncio.create_task(self._load(model, digest), name=f"pinned {model}")
            task.add_done_callback(lambda done: self._loaded(digest, done))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Safe to repeat."""
        tasks = list(self._loads.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        own, self._own = list(self._own.values()), {}
        await asyncio.gather(*(replica.close() for replica in own))

    async def _load(self, model: str, digest: str) -> Replica:
        log.info("loaded beside the others, since vectors were made with it model=%s digest=%s", model, digest)
        try:
            replica = await self._bring(model, digest)
        except (MeshError, OSError) as error:
            raise NotReady(
                f"vectors were made with {model!r} {digest}, which this node cannot load: {error}; publish that "
                "version again, or have them made anew: nearmesh vectors reembed"
            ) from None
        self._own[digest] = replica
        return replica

    def _loaded(self, digest: str, task: asyncio.Task[Replica]) -> None:
        del self._loads[digest]
        if not task.cancelled() and (error := task.exception()):
            log.warning("%s", error)


def _remember(path: Path, digests: Sequence[str]) -> None:
    try:
        write_private(path, json.dumps(digests).encode())
    except OSError as error:
        log.warning("%s is not written, and what it says is old: %s", path, error)


def _remembered(path: Path) -> set[str]:
    try:
        return set(map(str, json.loads(path.read_bytes())))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be read: %s", path, error)
        return set()
