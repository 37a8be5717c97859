"""What goes on across sites, in the process that keeps a node's vectors: built here, and asked by its servicer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from nearmesh.errors import InvalidInput, MeshError
from nearmesh.transport.server import Server
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1 import vector_pb2_grpc
from nearmesh_agent.vectors import limits
from nearmesh_agent.vectors.across.clock import stamp_at
from nearmesh_agent.vectors.across.giving import Giving
from nearmesh_agent.vectors.across.gone import Gone
from nearmesh_agent.vectors.across.ledger import NodeLedger
from nearmesh_agent.vectors.across.offers import placed_at, sites_of
from nearmesh_agent.vectors.across.places import Here, admits
from nearmesh_agent.vectors.across.receipts import Lag
from nearmesh_agent.vectors.across.taking import Taking
from nearmesh_agent.vectors.collection import Collection
from nearmesh_agent.vectors.collections import CollectionSpec
from nearmesh_agent.vectors.keeper import Keeper

log = logging.getLogger(__name__)

# A delete is remembered for so long, and until every site has it. A node that comes back with an older backup of its
# disk, with rows that it never heard were deleted, brings them back.
KEEP_DELETES_S = 90 * 86400.0
_TIDY_EVERY_S, _OPENING_S = 3600.0, 1.0
_DEFAULT_PAGE, _MOST_RECEIPTS = 100, 1_000


class Across:
    """Over the collections of one process, which are open."""

    def __init__(self, keeper: Keeper, ledger: NodeLedger, here: Here) -> None:
        self._keeper = keeper
        self._ledger = ledger
        self._here = here
        self.gone = Gone(ledger.tables)
        self.giving = Giving(keeper, ledger, self.gone, here)
        self.taking = Taking(keeper, ledger, self.gone, here)
        # Beside what the ledger has: a clock that was set back makes no change older than the last.
        for spec in keeper.specs:
            ledger.clock.heard(spec.updated)

    def add_to(self, server: Server) -> None:
        vector_pb2_grpc.add_VectorPeerServiceServicer_to_server(self.giving, server)
        vector_pb2_grpc.add_VectorAcrossServiceServicer_to_server(self.taking, server)

    async def run(self) -> None:
        """For as long as the process lives."""
        while True:
            try:
                for collection in self._keeper:
                    await self._look_after(collection)
            except MeshError as error:
                log.warning("what is over is not forgotten yet: %s", error)
            # Those that are still being opened come soon.
            await asyncio.sleep(_TIDY_EVERY_S if self._keeper.whole else _OPENING_S)

    async def _look_after(self, collection: Collection) -> None:
        if await asyncio.to_thread(self.gone.has, collection.identity):
            # Killed between the word and the deed.
            await self._keeper.drop(collection)
        else:
            await asyncio.to_thread(self._tidy, collection.spec)

    def _tidy(self, spec: CollectionSpec) -> None:
        # A kill may have come between its making and its being followed.
        self.settled(spec)
        others = sorted(sites_of(spec) - {self._here.site})
        receipts = self.giving.receipts(spec.identity)
        known = receipts.everybody_has(others) if spec.replicate_to else self._ledger.last(spec.identity)
        if forgotten := self._ledger.forget(spec.identity, stamp_at(time.time() - KEEP_DELETES_S), known):
            log.info("forgotten deletes=%d collection=%s", forgotten, spec.name)

    # What callers change.

    def stamped(self, spec: CollectionSpec, before: CollectionSpec | None = None) -> CollectionSpec:
        """A spec that is made or changed here and now. Raises InvalidInput for one that may not be kept here."""
        if not admits(spec.regions, self._here.region):
            raise InvalidInput(
                f"regions {', '.join(spec.regions)} leave out {self._here.region!r}, in which this node would keep it"
            )
        now = self._ledger.now()
        same = before is not None and (before.replicate_to, before.regions) == (spec.replicate_to, spec.regions)
        placed = placed_at(before) if before and same else now
        return replace(spec, site=spec.site or self._here.site, updated=now, placed=placed)

    def settled(self, spec: CollectionSpec) -> None:
        """It is so from now on: its rows are counted if others are to have it. Blocks for a moment."""
        self._ledger.follow(spec.identity, bool(spec.replicate_to))

    def drops(self, spec: CollectionSpec) -> None:
        """It is about to be dropped here: so it is to be everywhere. Blocks for a moment."""
        self.gone.add(spec, time.time(), self._ledger.now())

    # What callers are shown.

    def replicas(self, spec: CollectionSpec) -> list[pb.Collection.Replica]:
        """How far the other sites are. Blocks for a moment."""
        if not spec.replicate_to:
            return []
        lags: defaultdict[str, list[Lag]] = defaultdict(list)
        for lag in self.giving.receipts(spec.identity).lags():
            lags[lag.site].append(lag)
        own = {self._here.site} - set(lags)
        return [self._replica(spec, site, lags[site]) for site in sorted(sites_of(spec) - own)]

    def _replica(self, spec: CollectionSpec, site: str, lags: Sequence[Lag]) -> pb.Collection.Replica:
        now_s = time.time()
        connected = [lag for lag in lags if self.giving.connected(spec.identity, lag.node)]
        # Of a site's nodes, the one that is farthest behind of those that are there.
        behind = min(connected or lags, key=lambda lag: lag.acknowledged, default=None)
        if behind is None:
            rows, oldest_s = self._ledger.last(spec.identity), spec.created_at_s
            return pb.Collection.Replica(
                site=site, lag_rows=rows, lag_s=max(0.0, now_s - oldest_s), detail=self._detail(spec, site, known=False)
            )
        return pb.Collection.Replica(
            site=site,
            acknowledged=behind.acknowledged,
            lag_rows=behind.rows,
            lag_s=max(0.0, now_s - behind.oldest_s) if behind.rows else 0.0,
            connected=bool(connected),
            detail="" if connected else self._detail(spec, site, known=True),
        )

    def _detail(self, spec: CollectionSpec, site: str, *, known: bool) -> str:
        """What nodes of the site said of it."""
        said = self.giving.why_not(spec, site)
        return said or ("not connected" if known else "no node of it has asked for it yet")

    def receipts(self, spec: CollectionSpec, request: pb.ListReceiptsRequest) -> pb.ListReceiptsResponse:
        """Which sites have taken which deletes. Blocks for a moment."""
        most = min(request.page_size or _DEFAULT_PAGE, _MOST_RECEIPTS)
        before = min(request.before, limits.INT64[-1])
        found = self.giving.receipts(spec.identity).of(id=request.id, before=before, most=most)
        return pb.ListReceiptsResponse(
            receipts=[
                pb.ListReceiptsResponse.Receipt(
                    id=one.id,
                    change=one.change,
                    deleted_at_s=one.deleted_at_s,
                    sites=[
                        pb.ListReceiptsResponse.Site(site=by.site, node=by.node, acknowledged_at_s=by.at_s)
                        for by in one.by
                    ],
                )
                for one in found
            ]
        )
