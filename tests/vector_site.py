"""A site's vectors without its process: keeper and servicer over parts that are dicts, called as by the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.config import VectorsConfig
from nearmesh_agent.vectors.keeper import Keeper
from nearmesh_agent.vectors.namespaces import KEY
from nearmesh_agent.vectors.servicer import VectorServicer
from nearmesh_agent.vectors.upkeep import Upkeep

from nearmesh.v1 import vector_pb2 as pb
from tests.vector_parts import DictApplier, DictParts

HERE = Here(node="node-a", site="site-a", region="europe-west1")


class Context:
    """Of a call on behalf of a namespace; "*" for an operator's."""

    def __init__(self, reach: str = "default") -> None:
        self._reach = reach

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [(KEY, self._reach)]

    def time_remaining(self) -> float | None:
        return None


class Site:
    """A keeper that is open, and its servicer."""

    def __init__(self, folder: Path, parts: DictParts, config: VectorsConfig) -> None:
        self.parts = parts
        # The store has everything before each call.
        self.takes_over = False
        self.keeper = Keeper(config, folder, parts)
        self.upkeep = Upkeep(self.keeper)
        self.servicer = VectorServicer(self.keeper, self.upkeep, HERE, threads=2)

    async def ask(self, method: str, request: Any, reach: str = "default") -> Any:
        if self.takes_over and self.keeper.applier:
            self.keeper.applier.step()  # type: ignore[attr-defined]
        return await getattr(self.servicer, method)(request, Context(reach))

    async def search(self, vector: list[float], reach: str = "default", **more: Any) -> pb.SearchResponse:
        request = pb.SearchRequest(collection=ref(), vector=bytes_of(*vector), **more)
        return pb.SearchResponse.FromString(await self.ask("Search", request, reach))

    async def upsert(self, *rows: pb.Row, reach: str = "default") -> pb.UpsertResponse:
        return await self.ask("Upsert", pb.UpsertRequest(collection=ref(), rows=rows), reach)

    async def ids(self, **more: Any) -> list[str]:
        """All rows, by pages."""
        answer = await self.ask("Query", pb.QueryRequest(collection=ref(), **more))
        return [one.id for one in answer.rows]

    async def create(self, name: str = "docs", reach: str = "default", **more: Any) -> pb.Collection:
        fields = [pb.Field(name="lang", type=pb.FIELD_TYPE_STRING), pb.Field(name="year", type=pb.FIELD_TYPE_INT)]
        request = pb.CreateCollectionRequest(**{"collection": ref(name), "dimension": 2, "fields": fields, **more})
        return await self.ask("CreateCollection", request, reach)


@asynccontextmanager
async def site(
    folder: Path, parts: DictParts | None = None, *, killed: bool = False, **config: Any
) -> AsyncIterator[Site]:
    """Open until the end; `killed` leaves without an orderly one."""
    found = Site(folder, parts or DictParts(), VectorsConfig(**config))
    await found.keeper.open()
    running = asyncio.create_task(found.keeper.run())
    try:
        yield found
    finally:
        running.cancel()
        found.servicer.close()
        found.upkeep.close()
        if not killed:
            await found.keeper.close()


def ref(name: str = "docs", namespace: str = "") -> pb.CollectionRef:
    return pb.CollectionRef(name=name, namespace=namespace)


def bytes_of(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


def row(name: str, x: float = 1.0, y: float = 0.0, *, lang: str = "", source: str = "", text: str = "") -> pb.Row:
    message = pb.Row(id=name, vector=bytes_of(x, y), text=text)
    if lang:
        message.fields["lang"].string = lang
    if source:
        message.origin.source, message.origin.hash, message.origin.parts = source, "h", 1
    return message


def applier_of(found: Site) -> DictApplier:
    assert isinstance(found.keeper.applier, DictApplier)
    return found.keeper.applier
