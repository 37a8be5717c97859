"""What other nodes get of the collections here: which are meant for them, and every change, as it is made.

A node that asks names the last change that it has on its disk, and with that acknowledges all before it. What it is
sent is the present state of what was changed since, so one that was away for long gets no more than there is.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nearmesh.errors import NotFound, NotReady, PermissionDenied
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1 import vector_pb2_grpc
from nearmesh_agent.vectors.across import offers
from nearmesh_agent.vectors.across.gone import Gone
from nearmesh_agent.vectors.across.hits import RESIDENCY
from nearmesh_agent.vectors.across.ledger import Changed, NodeLedger
from nearmesh_agent.vectors.across.merge import change
from nearmesh_agent.vectors.across.peer import peer_of
from nearmesh_agent.vectors.across.places import Here, admits
from nearmesh_agent.vectors.across.receipts import Receipts
from nearmesh_agent.vectors.across.streams import Reading, first_of, listening, parts
from nearmesh_agent.vectors.collection import Collection
from nearmesh_agent.vectors.collections import CollectionSpec
from nearmesh_agent.vectors.keeper import Keeper
from nearmesh_agent.vectors.table import OpenTable

# Changes that are read at a time, and bytes of a message unless less is asked for.
_READ = 1_000
_MOST_BYTES = 4 * 1024 * 1024
# Ids that are counted at a time, when a collection is to be elsewhere for the first time.
_FILLED = 10_000
# Messages that may be on their way: one more is sent when the first of them has been acknowledged.
_AHEAD = 4
# Reasons that a node gives: of how many collections, and how long.
_MOST_REFUSED, _MOST_CHARACTERS = 1_000, 300
# A node asks every few seconds what is offered.
SILENCE_S = 20.0


class Giving(vector_pb2_grpc.VectorPeerServiceServicer):
    """Over the collections of one process."""

    def __init__(self, keeper: Keeper, ledger: NodeLedger, gone: Gone, here: Here) -> None:
        self._keeper = keeper
        self._ledger = ledger
        self._gone = gone
        self._here = here
        self._filling: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # By identity, those who wait for something new.
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop = asyncio.get_running_loop()
        # Streams that are open, by identity and node.
        self._open: Counter[tuple[str, str]] = Counter()
        self._heard: dict[str, _Heard] = {}
        # Nodes that have asked for a collection's changes since the process began.
        self._met: set[tuple[str, str]] = set()
        ledger.news = self._news

    def receipts(self, identity: str) -> Receipts:
        return Receipts(self._ledger, identity, node=self._here.node, site=self._here.site)

    def connected(self, identity: str, node: str) -> bool:
        """Whether a node follows a collection now. Of one that is frozen, the stream stays open for a while."""
        heard = self._heard.get(node)
        return heard is not None and self._open[identity, node] > 0 and time.monotonic() < heard.at_s + SILENCE_S

    def why_not(self, spec: CollectionSpec, site: str) -> str:
        """Why a site does not have a collection, as far as its nodes have said; empty: they have not."""
        for heard in self._heard.values():
            if heard.peer.site != site:
                continue
            if not admits(spec.regions, heard.peer.region):
                return f"{RESIDENCY}: its regions leave out {heard.peer.region}"
            if bound := _bound(spec, heard.peer):
                return f"{RESIDENCY}: a rule that binds {', '.join(bound)} leaves out {heard.peer.region}"
            if spec.identity in heard.refused:
                return heard.refused[spec.identity]
        return ""

    async def Offered(self, request: pb.OfferedRequest, context: Any) -> pb.OfferedResponse:
        peer = peer_of(context)
        if request.site != peer.site:
            raise PermissionDenied(f"node {peer.node} is at site {peer.site!r}, not at {request.site[:64]!r}")
        refused = {one.identity: one.why[:_MOST_CHARACTERS] for one in request.refused[:_MOST_REFUSED]}
        self._heard[peer.node] = _Heard(peer, time.monotonic(), refused)
        known = await asyncio.to_thread(self._known_to, peer)
        found = [
            offers.offer_of(one.spec)
            for one in self._keeper
            if not _bound(one.spec, peer)
            and (one.identity in known or offers.belongs(one.spec, peer.site, peer.region, from_site=self._here.site))
        ]
        return pb.OfferedResponse(offers=[*found, *await asyncio.to_thread(self._gone.offers, peer.site)])

    def _known_to(self, peer: Here) -> set[str]:
        """Collections that it has followed: it learns of it, too, when it is to have one no more."""
        return {one.identity for one in self._keeper if self._ledger.followed_by(one.identity, peer.node)}

    async def Changes(
        self, requests: AsyncIterator[pb.ChangesRequest], context: Any
    ) -> AsyncIterator[pb.ChangesResponse]:
        peer = peer_of(context)
        first = await anext(aiter(requests), None)
        if first is None:
            return
        collection = self._collection(first, peer)
        identity = collection.identity
        await self.fill(collection)
        log, number = await asyncio.to_thread(self._where, identity, peer.node, first)
        self._met.add((identity, peer.node))
        reading = Reading(self.receipts(identity), peer)
        await reading.take(number)
        reader = asyncio.create_task(reading.run(requests))
        self._open[identity, peer.node] += 1
        try:
            if first.log != log:
                # So that it knows whose numbers it goes by from the beginning.
                yield pb.ChangesResponse(log=log)
            async for message in self._messages(collection, peer, reading, reader, first.most_bytes, log):
                yield message
            await reader
        finally:
            reader.cancel()
            self._open[identity, peer.node] -= 1

    def _where(self, identity: str, node: str, first: pb.ChangesRequest) -> tuple[str, int]:
        """By which log a node is to count, and up to which number of it it has everything. Blocking."""
        log = self._ledger.log(identity)
        met = (identity, node) in self._met
        if first.log == log and not met and first.acknowledged > self._ledger.at_start(identity):
            # Nobody is told of a number that is not on disk, so the disk was brought back from before.
            log = self._ledger.counts_anew(identity)
        number = first.acknowledged if first.log == log else 0
        # One whose disk was lost, or brought back, lacks what it told of itself, too.
        if first.log != log or number < self.receipts(identity).number(node):
            self._ledger.begins_anew(identity, node, number)
        return log, number

    def _collection(self, request: pb.ChangesRequest, peer: Here) -> Collection:
        """Raises NotFound, PermissionDenied."""
        found = next((one for one in self._keeper if one.identity == request.identity), None)
        if found is None:
            raise NotFound(f"no collection {request.collection.name[:64]!r} of that identity on this node")
        self._check(found, peer)
        return found

    def _check(self, collection: Collection, peer: Here) -> None:
        if not offers.belongs(collection.spec, peer.site, peer.region, from_site=self._here.site):
            raise PermissionDenied(f"collection {collection.spec.name!r} is not for site {peer.site!r}")
        if bound := _bound(collection.spec, peer):
            raise PermissionDenied(f"{RESIDENCY}: what is of {', '.join(bound)} stays out of region {peer.region!r}")

    async def _messages(
        self,
        collection: Collection,
        peer: Here,
        reading: Reading,
        reader: asyncio.Task[None],
        most_bytes: int,
        log: str,
    ) -> AsyncIterator[pb.ChangesResponse]:
        """Until the node asks no more."""
        identity, serving = collection.identity, collection.serving
        digest = collection.spec.serving.digest
        sent = reading.acknowledged
        on_their_way: list[int] = []
        with listening(self._waiting[identity]) as news:
            while not reader.done():
                news.clear()
                # It may have been changed, or dropped, meanwhile.
                self._check(collection, peer)
                another = collection.serving is not serving or collection.spec.serving.digest != digest
                if another or all(one is not collection for one in self._keeper):
                    raise NotReady(f"collection {collection.spec.name!r} is another one now; ask for it again")
                found, last = await asyncio.to_thread(self._ledger.since, identity, sent, _READ, but=peer.node)
                if last == sent:
                    await first_of(news.wait(), reader)
                    continue
                read = partial(self._read, identity, serving, found, last, min(most_bytes or _MOST_BYTES, _MOST_BYTES))
                for message in await asyncio.to_thread(read):
                    message.log, message.embedder_digest = log, digest
                    yield message
                    sent = message.last
                    on_their_way.append(sent)
                    if len(on_their_way) >= _AHEAD:
                        await reading.until(on_their_way.pop(0), reader)

    def _read(
        self, identity: str, serving: OpenTable, found: Sequence[Changed], last: int, most_bytes: int
    ) -> list[pb.ChangesResponse]:
        """What was changed, as it is now, in messages of that size. Blocking."""
        ids = [one.id for one in found]
        rows = {row.id: row for row in serving.index.rows(ids, vectors=True)}
        deleted = self._ledger.tombstones(identity, ids)
        changes = [
            change(one.number, one.id, rows.get(one.id), deleted.get(one.id, 0))
            for one in found
            if one.id in rows or one.id in deleted
        ]
        messages = [pb.ChangesResponse(changes=part, last=part[-1].number) for part in parts(changes, most_bytes)]
        if not messages:
            return [pb.ChangesResponse(last=last)]
        messages[-1].last = last
        return messages

    async def fill(self, collection: Collection) -> None:
        """Counts what was there before others were to have it."""
        identity, index = collection.identity, collection.serving.index
        async with self._filling[identity]:
            if await asyncio.to_thread(self._ledger.filled, identity):
                return
            after = ""
            while True:
                select = partial(index.select, None, after=after, limit=_FILLED)
                ids = await asyncio.to_thread(select)
                last = len(ids) < _FILLED
                await asyncio.to_thread(partial(self._ledger.fill, identity, ids, last=last))
                if last:
                    return
                after = ids[-1]

    # What is new.

    def _news(self, identity: str) -> None:
        """In any thread."""
        self._loop.call_soon_threadsafe(self._wake, identity)

    def _wake(self, identity: str) -> None:
        for event in self._waiting.get(identity, ()):
            event.set()


def _bound(spec: CollectionSpec, peer: Here) -> list[str]:
    """Sites whose rows it has, and may not have go to a node: the way through another site is none either."""
    return sorted(offers.sites_of(spec) & peer.barred)


@dataclass(frozen=True, slots=True)
class _Heard:
    """A node that has asked what there is for it."""

    peer: Here
    # By the monotonic clock.
    at_s: float
    # By identity, what it does not take, and why.
    refused: Mapping[str, str]
