"""What other nodes have for the collections here: the agent, which talks with them, hands it over.

A collection that is offered is made, kept in step with its settings, or given up; changes of it are merged, and are on
disk before they count as taken.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nearmesh.errors import InvalidInput, MeshError, NotFound
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1 import vector_pb2_grpc
from nearmesh_agent.vectors import limits
from nearmesh_agent.vectors.across import offers
from nearmesh_agent.vectors.across.gone import Gone
from nearmesh_agent.vectors.across.ledger import NodeLedger
from nearmesh_agent.vectors.across.merge import Merge, stamps, states
from nearmesh_agent.vectors.across.offers import Decision, Known, Then
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.collection import Collection
from nearmesh_agent.vectors.keeper import Keeper

log = logging.getLogger(__name__)

# Offers of one node.
MOST_OFFERS = 10_000
# Of the name of a log.
_MOST_LOG = 64


class Taking(vector_pb2_grpc.VectorAcrossServiceServicer):
    """Over the collections of one process."""

    def __init__(self, keeper: Keeper, ledger: NodeLedger, gone: Gone, here: Here) -> None:
        self._keeper = keeper
        self._ledger = ledger
        self._gone = gone
        self._here = here
        # Two nodes may offer the same collection at once.
        self._adopting = asyncio.Lock()

    async def Adopt(self, request: pb.AdoptRequest, context: Any) -> pb.AdoptResponse:
        found = pb.AdoptResponse()
        for offer in request.offers[:MOST_OFFERS]:
            async with self._adopting:
                refused, collection = await self._adopted(offer, request)
            if collection:
                number_of, number = await asyncio.to_thread(self._ledger.cursor, offer.identity, request.node)
                serving = collection.spec.serving
                found.followed.add(
                    collection=offer.collection.collection,
                    identity=offer.identity,
                    acknowledged=number,
                    log=number_of,
                    embedder=serving.embedder,
                    embedder_digest=serving.digest,
                )
            elif refused:
                found.refused.add(identity=offer.identity, why=refused)
        return found

    async def _adopted(
        self, offer: pb.OfferedResponse.Offer, request: pb.AdoptRequest
    ) -> tuple[str, Collection | None]:
        """Why it is not taken, or what is to be followed."""
        try:
            known = await asyncio.to_thread(self._known, offer)
            decision = offers.decide(offer, known, self._here, from_site=request.site)
            if decision.then is not Then.NOTHING:
                await self._do(decision, offer, request.node)
        except MeshError as error:
            name = offer.collection.collection.name
            log.warning("not taken from node=%s collection=%s: %s", request.node, name, error.message)
            return error.message, None
        return decision.refused, self._by_identity(offer.identity) if decision.follow else None

    def _known(self, offer: pb.OfferedResponse.Offer) -> Known:
        ref = offer.collection.collection
        specs = list(self._keeper.specs)
        return Known(
            here=next((spec for spec in specs if spec.identity == offer.identity), None),
            namesake=next((spec for spec in specs if (spec.namespace, spec.name) == (ref.namespace, ref.name)), None),
            dropped=self._gone.has(offer.identity),
            serves=self._keeper.config.serves,
        )

    async def _do(self, decision: Decision, offer: pb.OfferedResponse.Offer, node: str) -> None:
        """Raises MeshError."""
        spec = decision.spec
        assert spec
        for stamp in (offer.updated, offer.placed):
            self._ledger.clock.check(stamp)
            self._ledger.clock.heard(stamp)
        log.info("%s collection=%s as node=%s says", decision.then.value, spec.name, node)
        if decision.then is Then.CREATE:
            self._keeper.specs.check_free(spec)
            # What an earlier copy has left says that everything came already.
            await asyncio.to_thread(self._ledger.drop, spec.identity)
            made = replace(spec, created_at_s=time.time(), incarnation=uuid.uuid4().hex[:8])
            await self._keeper.create(made, copy=True)
            await asyncio.to_thread(self._ledger.follow, spec.identity, True)
            return
        collection = self._by_identity(spec.identity)
        if collection is None:
            raise NotFound(f"collection {spec.name!r} is still being opened on node {self._here.node}")
        if decision.then is Then.UPDATE:
            await self._keeper.update(collection, lambda now: offers.newest(offer, now))
            await asyncio.to_thread(self._ledger.follow, spec.identity, bool(collection.spec.replicate_to))
            return
        if decision.then is Then.DROP:
            await asyncio.to_thread(self._gone.add, spec, time.time(), offer.updated)
        await self._keeper.drop(collection)

    async def Take(self, request: pb.TakeRequest, context: Any) -> pb.TakeResponse:
        collection = self._by_identity(request.identity)
        if collection is None:
            raise NotFound(f"no collection {request.collection.name[:64]!r} of that identity on this node")
        changes = request.changes
        if len(changes.log) > _MOST_LOG or changes.last not in limits.INT64:
            raise InvalidInput(
                f"changes up to {changes.last} of the log {changes.log[:_MOST_LOG]!r}, which no node has"
            )
        for stamp in stamps(changes.changes):
            self._ledger.clock.check(stamp)
        if changes.changes:
            table = collection.serving.table
            found = await asyncio.to_thread(states, changes.changes, table)
            merge = Merge(
                ids=list(found),
                states=found,
                table=table.name,
                source=request.node,
                site=request.site,
                embedder_digest=changes.embedder_digest,
            )
            await collection.put(merge)
        await asyncio.to_thread(self._ledger.came, request.identity, request.node, changes.log, changes.last)
        return pb.TakeResponse(acknowledged=changes.last)

    async def Deleted(self, request: pb.DeletedRequest, context: Any) -> pb.DeletedResponse:
        collection = self._by_identity(request.identity)
        gone = await asyncio.to_thread(self._deleted, collection, request.ids) if collection else ()
        return pb.DeletedResponse(ids=gone)

    def _deleted(self, collection: Collection, ids: Sequence[str]) -> list[str]:
        gone = self._ledger.tombstones(collection.identity, ids)
        written_again = {row.id for row in collection.serving.index.rows(gone)}
        return [id for id in gone if id not in written_again]

    def _by_identity(self, identity: str) -> Collection | None:
        return next((one for one in self._keeper if one.identity == identity), None)
