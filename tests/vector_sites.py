"""Sites that have collections in common, without processes and networks: what agents hand to and fro is called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from nearmesh_agent.vectors.across import peer
from nearmesh_agent.vectors.across.child import Across
from nearmesh_agent.vectors.across.ledger import NodeLedger
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.config import VectorsConfig

from nearmesh.v1 import vector_pb2 as pb
from tests.vector_parts import DictParts
from tests.vector_site import Site, row, site

REF = pb.CollectionRef(name="docs")


class From:
    """A call of another node."""

    def __init__(self, here: Here) -> None:
        self._told = peer.told(here)

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [self._told]


class LedgerParts(DictParts):
    """With a real ledger."""

    def __init__(self, folder: Path, node: str) -> None:
        super().__init__()
        self._path, self._node = folder / "ledger.db", node

    def ledger(self) -> Any:
        return NodeLedger(self._path, node=self._node)


class Place:
    """One node of one site."""

    def __init__(self, here: Here, found: Site) -> None:
        self.here, self.site = here, found
        self.ledger: NodeLedger = found.keeper.ledger  # type: ignore[assignment]
        self.across = found.servicer.across = Across(found.keeper, self.ledger, here)
        self.refused: dict[str, list[Any]] = {}

    async def write(self, *names: str, text: str = "") -> None:
        await self.site.upsert(*(row(name, text=text) for name in names))

    async def delete(self, *names: str) -> pb.DeleteResponse:
        request = pb.DeleteRequest(collection=pb.CollectionRef(name="docs"), ids=names)
        return await self.site.ask("Delete", request)

    async def texts(self) -> dict[str, str]:
        found = await self.site.ask("Query", pb.QueryRequest(collection=pb.CollectionRef(name="docs"), page_size=1000))
        return {one.id: one.text for one in found.rows}

    async def collection(self) -> pb.Collection:
        return await self.site.ask("GetCollection", pb.CollectionRef(name="docs"))

    def names(self) -> list[str]:
        return [spec.name for spec in self.site.keeper.specs]

    async def offered(self, other: Place) -> pb.AdoptResponse:
        """What `other` has for this one is made, changed or dropped here."""
        request = pb.OfferedRequest(site=self.here.site, refused=self.refused.get(other.here.node, ()))
        offers = await other.across.giving.Offered(request, From(self.here))
        answer = await self.across.taking.Adopt(
            pb.AdoptRequest(node=other.here.node, site=other.here.site, region=other.here.region, offers=offers.offers),
            None,
        )
        self.refused[other.here.node] = list(answer.refused)
        return answer

    async def hear(self, other: Place) -> int:
        """Everything that `other` has by now; how many changes were sent."""
        answer = await self.offered(other)
        return sum([await self._follow(other, one) for one in answer.followed])

    async def _follow(self, other: Place, one: pb.AdoptResponse.Followed) -> int:
        asked: asyncio.Queue[pb.ChangesRequest | None] = asyncio.Queue()
        asked.put_nowait(
            pb.ChangesRequest(
                collection=one.collection, identity=one.identity, acknowledged=one.acknowledged, log=one.log
            )
        )
        collection = await other.site.keeper.get(one.collection.namespace, one.collection.name)
        await other.across.giving.fill(collection)
        log, sent = other.ledger.log(one.identity), 0
        met = (one.identity, self.here.node) in other.across.giving._met
        same = one.log == log and (met or one.acknowledged <= other.ledger.at_start(one.identity))
        done = one.acknowledged if same else -1
        changes = other.across.giving.Changes(_each(asked), From(self.here))
        while done < other.ledger.last(one.identity):
            message = await anext(changes)
            sent += len(message.changes)
            request = pb.TakeRequest(
                node=other.here.node,
                site=other.here.site,
                collection=one.collection,
                identity=one.identity,
                changes=message,
            )
            done = (await self.across.taking.Take(request, None)).acknowledged
            asked.put_nowait(pb.ChangesRequest(acknowledged=done))
        asked.put_nowait(None)
        async for _ in changes:
            raise AssertionError("more than there was")
        return sent


async def _each(asked: asyncio.Queue[pb.ChangesRequest | None]) -> AsyncIterator[pb.ChangesRequest]:
    while (one := await asked.get()) is not None:
        yield one


@asynccontextmanager
async def places(folder: Path, *sites: str, regions: tuple[str, ...] = (), **config: Any) -> AsyncIterator[list[Place]]:
    """A node at each of these sites, with all of them open."""
    async with AsyncExitStack() as stack:
        found = []
        for number, name in enumerate(sites):
            region = regions[number] if regions else "europe-west1"
            here = Here(node=f"node-{number}", site=name, region=region)
            (folder / here.node).mkdir(parents=True)
            parts = LedgerParts(folder / here.node, here.node)
            found.append(Place(here, await stack.enter_async_context(site(folder / here.node, parts, **config))))
        yield found


async def meet(found: list[Place]) -> None:
    """All hear of each other until there is nothing new."""
    while sum([await one.hear(other) for one in found for other in found if one is not other]):
        pass


__all__ = ["From", "LedgerParts", "Place", "VectorsConfig", "meet", "places"]


async def update(place: Place, **more: Any) -> None:
    await place.site.ask("UpdateCollection", pb.UpdateCollectionRequest(collection=REF, **more))


async def identity_of(place: Place) -> str:
    return (await place.site.keeper.get("default", "docs")).identity


async def ask_for(place: Place, peer: Place, identity: str) -> None:
    async def asked() -> Any:
        yield pb.ChangesRequest(identity=identity)

    async for _ in place.across.giving.Changes(asked(), From(peer.here)):
        pass
