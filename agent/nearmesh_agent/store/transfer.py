"""Carries a transfer out: asks sources for what the planner says, in threads, until every chunk is on the disk."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from nearmesh.errors import DigestMismatch, MeshError, NotFound, Overloaded, Unreachable
from nearmesh.v1 import node_pb2 as pb
from nearmesh_agent.store.bandwidth import Bandwidth
from nearmesh_agent.store.draft import Draft
from nearmesh_agent.store.planner import Job, Planner, Standing, Tier
from nearmesh_agent.store.source import Peer, Peers, Registry, Source, fill
from nearmesh_agent.store.window import Window

log = logging.getLogger(__name__)

REGISTRY = "the registry"
# Reads at a time from a node that has it all, and from one that is pulling it too.
WHOLE_SLOTS, SHARING_SLOTS = 4, 3
# For a part of another node's share, from one chunk to the next.
WAIT_S = 10.0
# A registry that failed so often in a row, with nothing read in between, is away: six seconds or so.
GIVE_UP = 6
# How often sources that had to be left alone are looked at again.
LOOK_EVERY_S = 0.2
# For threads to notice that they were broken off.
END_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlets:
    """Who can be asked for one version."""

    digest: str
    registry: Registry
    peers: Peers
    # Whether nodes that are pulling the version too share it out with this one.
    share: bool = True


class Transfer:
    """One run. `run` may be called once."""

    def __init__(
        self,
        planner: Planner,
        drafts: Mapping[str, Draft],
        outlets: Outlets,
        *,
        pool: Executor,
        bandwidth: Bandwidth,
        arrived: Callable[[str, int], None] = lambda digest, number: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`arrived` hears of each chunk that came, by its blob."""
        self._planner = planner
        self._drafts = drafts
        self._outlets = outlets
        self._pool = pool
        self._bandwidth = bandwidth
        self._arrived = arrived
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._window = Window()
        self._stop = threading.Event()
        self._sources: dict[str, Source] = {REGISTRY: outlets.registry}
        self._peers: list[Peer] = []
        self._standings: dict[str, Standing] = {}
        self._running: dict[asyncio.Future[None], Job] = {}
        self._asking: set[asyncio.Task[None]] = set()
        # By source, what it brought.
        self.brought: dict[str, int] = {}

    async def run(self) -> None:
        """Until every chunk is here. Raises DigestMismatch, NotFound, Unreachable, OSError."""
        try:
            while not self._planner.complete:
                self._follow()
                self._begin()
                if self._running:
                    await asyncio.wait(self._running, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                elif not self._planner.complete:
                    await asyncio.sleep(LOOK_EVERY_S / 4)
                for future in [future for future in self._running if future.done()]:
                    self._settle(future, self._running.pop(future))
            # The last chunk is here before its thread knows that nothing is left to do.
            await asyncio.gather(*self._running, return_exceptions=True)
            self._running.clear()
        finally:
            await self._end()

    async def _end(self) -> None:
        self._stop.set()
        for task in self._asking:
            task.cancel()
        if self._running:
            for source in self._sources.values():
                source.break_off()
        # Nobody waits long for a thread that hangs: it finds its file closed and writes nothing.
        if left := [*self._running, *self._asking]:
            done, _ = await asyncio.wait(left, timeout=END_S)
            for each in done:
                # Whatever it was, it was broken off.
                _ = each.cancelled() or each.exception()
        for peer in self._peers:
            peer.close()

    # Sources.

    def _follow(self) -> None:
        holders = {holder.node: holder for holder in self._outlets.peers.of(self._outlets.digest)}
        found = [Standing(REGISTRY, Tier.REGISTRY, whole=True, slots=self._window.connections)]
        for name, holder in holders.items():
            standing = _standing(holder)
            if standing and (holder.whole or self._outlets.share):
                found.append(standing)
                if name not in self._sources:
                    self._connect(holder)
        self._planner.follow(found)
        self._standings = {source.name: source for source in found}

    def _connect(self, holder: pb.Holder) -> None:
        peer = self._sources[holder.node] = self._outlets.peers.connect(holder)
        self._peers.append(peer)
        if not holder.whole:
            task = self._loop.create_task(self._ask_what_is_there(holder.node, peer))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask_what_is_there(self, name: str, peer: Peer) -> None:
        """A node that began earlier has parts already, whoever they would belong to."""
        try:
            here = await self._loop.run_in_executor(self._pool, peer.here, list(self._drafts))
        except MeshError as error:
            log.debug("node=%s did not say what it has: %s", name, error.message)
        else:
            self._planner.tell(name, here)

    # Work.

    def _begin(self) -> None:
        now_s = self._clock()
        for name in self._standings:
            while job := self._planner.take(name, now_s):
                future = self._loop.run_in_executor(self._pool, self._read, job, self._sources[name])
                self._running[future] = job

    def _read(self, job: Job, source: Source) -> None:
        """In a thread."""
        draft = self._drafts[job.pieces.digest]
        chunks = job.pieces.chunks[job.first : job.end]
        buffer = memoryview(bytearray(max(chunk.size_bytes for chunk in chunks)))
        if self._stop.is_set():
            return
        reader = source.open(job.pieces.digest, job.offset, job.size_bytes, WAIT_S if job.wait else 0.0)
        try:
            for number, chunk in enumerate(chunks, start=job.first):
                if not self._near(job.source):
                    self._stop.wait(self._bandwidth.take(chunk.size_bytes))
                part = buffer[: chunk.size_bytes]
                count = fill(reader, part)
                if self._stop.is_set():
                    return
                if count < chunk.size_bytes:
                    raise Unreachable(f"{job.source} broke off {_name(job)} after {chunk.offset + count} bytes")
                if not draft.put(number, part):
                    return
                self._loop.call_soon_threadsafe(self._came, job, number)
        finally:
            reader.close()

    def _near(self, source: str) -> bool:
        standing = self._standings.get(source)
        return standing is not None and standing.tier is Tier.SITE

    def _came(self, job: Job, number: int) -> None:
        now_s = self._clock()
        self._planner.arrived(job, number, now_s)
        size = job.pieces.chunks[number].size_bytes
        self.brought[job.source] = self.brought.get(job.source, 0) + size
        if job.source == REGISTRY:
            self._window.observe(self.brought[REGISTRY], now_s)
        self._arrived(job.pieces.digest, number)

    def _settle(self, future: asyncio.Future[None], job: Job) -> None:
        source = self._planner.ended(job)
        error = future.exception()
        if error is None or source is None:
            return
        now_s = self._clock()
        if isinstance(error, Overloaded):
            self._planner.busy(source, now_s, error.retry_after_ms / 1000 if error.retry_after_ms else None)
        elif not isinstance(error, MeshError):
            raise error
        elif job.source == REGISTRY:
            self._of_registry(error, job, source, now_s)
        elif isinstance(error, DigestMismatch):
            log.warning("node=%s gave wrong bytes and is left out: %s", job.source, error.message)
            self._planner.lied(source)
        elif isinstance(error, NotFound):
            log.info("node=%s does not have what it should: %s", job.source, error.message)
            self._planner.lacks(source, now_s)
        else:
            log.info("node=%s gave nothing: %s", job.source, error.message)
            self._planner.failed(source, now_s)

    def _of_registry(self, error: MeshError, job: Job, source: Standing, now_s: float) -> None:
        """What time may mend is tried again; the rest is raised."""
        if not isinstance(error, Unreachable):
            name = _name(job)
            raise error if name in error.message else type(error)(f"{name}: {error.message}")
        self._planner.failed(source, now_s)
        if source.failures >= GIVE_UP:
            raise error
        log.info("trying again, failures=%d: %s", source.failures, error.message)


def _standing(holder: pb.Holder) -> Standing | None:
    """How a node is asked; one of another site that has only parts is not."""
    slots = WHOLE_SLOTS if holder.whole else SHARING_SLOTS
    if holder.same_site:
        return Standing(holder.node, Tier.SITE, whole=holder.whole, slots=slots)
    return Standing(holder.node, Tier.REGION, whole=True, slots=slots) if holder.whole else None


def _name(job: Job) -> str:
    return job.pieces.blob.title or job.pieces.digest
