"""Collections that were dropped, and that other sites have too: they are told, whenever they come."""

from __future__ import annotations

import json

from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors.across.offers import offer_of, sites_of
from nearmesh_agent.vectors.across.tables import Tables
from nearmesh_agent.vectors.collections import CollectionSpec

_ASKED = "select distinct site from acknowledged where collection = (select key from collections where identity = ?)"


class Gone:
    """Over the tables of a node's ledger."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def add(self, spec: CollectionSpec, now_s: float, updated: int) -> None:
        """It is to be nowhere any more; on disk when it returns."""
        with self._tables.use() as tables:
            # A site that is to have it no more, and has not heard of that, would bring it back.
            asked = tables.all(_ASKED, spec.identity)
            sites = sites_of(spec) | {site for (site,) in asked}
            if asked or spec.replicate_to:
                offer = offer_of(spec, dropped=True, updated=updated).SerializeToString()
                told = (spec.identity, now_s, json.dumps(sorted(sites)), offer)
                tables.run("insert or ignore into dropped values (?, ?, ?, ?)", *told)
        self._tables.commit()

    def has(self, identity: str) -> bool:
        with self._tables.use() as tables:
            return tables.one("select 1 from dropped where identity = ?", identity) is not None

    def offers(self, site: str) -> list[pb.OfferedResponse.Offer]:
        """What a node at that site is told to drop."""
        with self._tables.use() as tables:
            found = tables.all("select sites, offer from dropped")
        return [pb.OfferedResponse.Offer.FromString(offer) for sites, offer in found if site in json.loads(sites)]
