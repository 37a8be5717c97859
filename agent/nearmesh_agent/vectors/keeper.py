"""All collections of a node: opened, made and dropped, and looked after while they are written and searched.

Ready to be searched and written is a collection as soon as its index is; the store is opened beside that, and takes
over from the journal when it is there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from nearmesh.backoff import Backoff
from nearmesh.errors import AlreadyExists, InvalidInput, MeshError, NotFound, NotReady, PermissionDenied
from nearmesh.whole import whole
from nearmesh_agent.vectors import limits, opening
from nearmesh_agent.vectors.collection import Collection, Desk
from nearmesh_agent.vectors.collections import CollectionSpec, Specs, cleared
from nearmesh_agent.vectors.config import VectorsConfig
from nearmesh_agent.vectors.ledger import Ledger
from nearmesh_agent.vectors.model import Journal, Store, Table
from nearmesh_agent.vectors.parts import Applier, Parts
from nearmesh_agent.vectors.table import OpenTable

log = logging.getLogger(__name__)

# Threads that plan and apply writes: two collections at a time.
_WRITERS = 2
_OPENERS = 2
# A store that cannot be opened is tried again.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0
# At the end: Milvus may be writing out what it has, which takes it long. A crash is no worse for it.
STORE_WITHIN_S = 2.0
# Requests for a collection that is being opened wait for it, up to this.
OPEN_WITHIN_S = 20.0


class Keeper:
    """Of one process. `open` comes first, `run` for as long as it lives, `close` at its end."""

    def __init__(self, config: VectorsConfig, folder: Path, parts: Parts) -> None:
        self.config = config
        self.parts = parts
        self.specs = Specs(folder / "collections")
        self.ledger: Ledger
        self.journal: Journal
        self.desk: Desk
        self.store: Store | None = None
        self.applier: Applier | None = None
        self.store_error = ""
        self._store_there = asyncio.Event()
        self._collections: dict[str, Collection] = {}
        # By identity, those that are being opened.
        self._opening: dict[str, asyncio.Event] = {}
        self._making, self._clearing = asyncio.Lock(), asyncio.Lock()
        self._writes: Executor = ThreadPoolExecutor(_WRITERS, "vector-writes")
        self._openers = ThreadPoolExecutor(_OPENERS, "vector-opening")
        self._opened = self.ending = False
        # The store is exchanged for another one: no tables come or go.
        self._still = False
        # Up to here the journal is needed by nothing but the store.
        self.saved_position = 0

    # The beginning and the end.

    async def open(self) -> None:
        """Returns when everything that was saved can be searched and written. Raises MeshError."""
        began_s = time.monotonic()
        self.journal, self.ledger = await asyncio.gather(
            asyncio.to_thread(self.parts.journal), asyncio.to_thread(self.parts.ledger)
        )
        self.desk = Desk(self.journal, self.ledger, self._writes)
        if self.specs.damaged:
            # What the journal has of them, neither indexes nor ledger are told.
            self.desk.failed(self.journal.first)
        loop = asyncio.get_running_loop()
        specs = list(self.specs)
        found = await asyncio.gather(*(loop.run_in_executor(self._openers, self._saved, spec) for spec in specs))
        tables = {table.table.name: table for one in found if one for table in one}
        await asyncio.to_thread(opening.go_on, self.journal, tables.values(), self.ledger)
        # What was written before a switch is in the journal under the former table's name.
        identities = {
            spec.table_of(generation).name: spec.identity
            for spec in specs
            for generation in (*spec.former, spec.serving)
        }
        again = await asyncio.to_thread(opening.replay, self.journal, tables, self.ledger, identities)
        for spec, one in zip(specs, found, strict=True):
            if one is None:
                self._opening[spec.identity] = asyncio.Event()
                continue
            self._collections[spec.identity] = self._collection(spec, one)
            if self.config.index == "memory":
                await self._give_words()
        self._opened = True
        log.info(
            "open collections=%d rows=%d replayed=%d in %.2f s",
            len(self._collections),
            sum(collection.serving.index.size for collection in self),
            again,
            time.monotonic() - began_s,
        )

    async def run(self) -> None:
        """Opens the store, and makes what was not saved. Returns when that is done."""
        backoff = Backoff(_FIRST_WAIT_S, _LONGEST_WAIT_S)
        while self.store is None:
            try:
                self.store = await asyncio.to_thread(self._open_store)
            except (MeshError, OSError) as error:
                self.store_error = str(error)
                log.error("the store cannot be opened, writes go on into the journal: %s", error)
                await asyncio.sleep(backoff.next_s())
        self.store_error = ""
        await self._make_anew(self.store)
        self.applier = self.parts.applier(
            self.journal, self.store, known=self._known, saved=lambda: self.saved_position
        )
        self.applier.start()
        self._store_there.set()
        await self._tidy_up()
        while self._opening:
            await asyncio.sleep(backoff.next_s())
            await self._make_anew(self.the_store())
            await self._tidy_up()

    async def _tidy_up(self) -> None:
        await self._give_words()
        await self._clear_away(self.the_store())
        for collection in self:
            await self.clear_former(collection)

    async def _give_words(self) -> None:
        for collection in self:
            for table in collection.tables:
                if table.wordless:
                    await asyncio.to_thread(opening.give_words, table)

    # The door to the store.

    def the_store(self) -> Store:
        """Raises NotReady."""
        if self.store is None:
            raise NotReady(f"the store of this node is not open yet{self.store_error and f': {self.store_error}'}")
        return self.store

    def the_applier(self) -> Applier:
        """Raises NotReady."""
        if self.applier is None:
            raise NotReady("the store of this node is not open yet; ask again in a moment")
        return self.applier

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """No collection is made, changed or dropped inside; rows are written as before."""
        async with self._making:
            self._still = True
        try:
            yield
        finally:
            self._still = False

    def visible(self) -> int:
        return self.applier.visible if self.applier else 0

    def _open_store(self) -> Store:
        store = self.parts.store()
        try:
            for spec in self.specs:
                for table in spec.tables:
                    store.create(table)
        except (MeshError, OSError):
            # Lite is for one process alone: the next one would be refused for as long as this one is there.
            store.close()
            raise
        return store

    async def close(self) -> None:
        """What is acknowledged is on disk in any case; this makes the next start quick."""
        self.ending = True
        if not self._opened:
            return
        for collection in self:
            await collection.quiet()
            # First of all: who waits for this process does not wait for long.
            await asyncio.to_thread(_saved, collection)
        await asyncio.to_thread(self.ledger.save, await self.desk.settled())
        try:
            async with asyncio.timeout(STORE_WITHIN_S):
                if self.applier:
                    await asyncio.to_thread(self.applier.stop)
                if self.store:
                    await asyncio.to_thread(self.store.close)
        except TimeoutError:
            log.info("the store is left in the middle of its work; the journal has what it lacks")
        for collection in self:
            for table in collection.tables:
                await asyncio.to_thread(table.close)
        await asyncio.to_thread(self.ledger.close)
        await asyncio.to_thread(self.journal.close)
        self._writes.shutdown(wait=False)
        self._openers.shutdown(wait=False)

    # Collections.

    def __iter__(self) -> Iterator[Collection]:
        return iter(list(self._collections.values()))

    async def get(self, namespace: str, name: str) -> Collection:
        """Waits for one that is being opened. Raises NotFound, NotReady, PermissionDenied."""
        self._check_served(namespace)
        spec = self.specs.get(namespace, name)
        if opened := self._opening.get(spec.identity):
            try:
                async with asyncio.timeout(OPEN_WITHIN_S):
                    await opened.wait()
            except TimeoutError:
                said = f": {self.store_error}" if self.store_error else ""
                raise NotReady(f"collection {name!r} is still being made from the store{said}") from None
        if self.config.index == "engine":
            await self.wait_for_store()
        found = self._collections.get(spec.identity)
        if found is None:
            raise NotFound(f"no collection {name!r} in namespace {namespace!r} on this node")
        return found

    @whole
    async def create(self, spec: CollectionSpec, *, copy: bool = False) -> Collection:
        """A `copy` of another site's is bound by no quota.

        Raises AlreadyExists, Unsupported for an index type that the engine lacks, QuotaExceeded and others.
        """
        self._check_served(spec.namespace)
        limits.check_name(spec.name)
        async with self._making:
            self._check_moving()
            self._check_new(spec, copy=copy)
            table = await self.new_table(spec.table)
            await asyncio.to_thread(self.specs.put, spec)
            found = self._collections[spec.identity] = self._collection(spec, [table])
        log.info("created collection=%s namespace=%s table=%s", spec.name, spec.namespace, spec.table.name)
        return found

    @whole
    async def update(self, collection: Collection, change: Callable[[CollectionSpec], CollectionSpec]) -> None:
        """Another spec of the same identity, made of the one that it has. Raises what `change` raises, NotFound."""
        async with self.changing(collection):
            spec = change(collection.spec)
            await asyncio.to_thread(self.specs.put, spec)
            collection.spec = spec

    @asynccontextmanager
    async def changing(self, collection: Collection) -> AsyncIterator[None]:
        """Nobody else changes or drops it, or another one. Raises NotFound where somebody has."""
        async with self._making:
            self._check_moving()
            if self._collections.get(collection.identity) is not collection:
                raise NotFound(f"collection {collection.spec.name!r} was dropped meanwhile")
            yield

    async def new_table(self, table: Table) -> OpenTable:
        """Empty, in the store and in memory. Raises MeshError."""
        store = await self.wait_for_store()
        await asyncio.to_thread(store.create, table)
        return await asyncio.to_thread(opening.empty, self.parts, table, self.journal.position, self)

    async def clear_former(self, collection: Collection) -> None:
        """What generations have left that served before or were given up."""
        former = collection.spec.former
        if not former or self.store is None:
            return
        try:
            # Their writes may be changes that the ledger has from the journal alone.
            await asyncio.to_thread(self.ledger.save, await self.desk.settled())
            for generation in former:
                table = collection.spec.table_of(generation)
                await asyncio.to_thread(self.store.drop, table.name)
                await asyncio.to_thread(self.parts.remove, table)
            await self.update(collection, partial(cleared, gone=former))
        except (MeshError, OSError) as error:
            log.warning("former generations of collection=%s are not cleared away yet: %s", collection.spec.name, error)

    @whole
    async def drop(self, collection: Collection) -> int:
        """How many rows it had; gone for good when it returns, although its files may stay a moment longer."""
        async with self.changing(collection):
            rows = collection.serving.index.size
            await asyncio.to_thread(self.specs.drop, collection.spec)
            del self._collections[collection.identity]
        await collection.close()
        if self.store:
            await self._clear_away(self.store)
        log.info("dropped collection=%s namespace=%s", collection.spec.name, collection.spec.namespace)
        return rows

    @property
    def whole(self) -> bool:
        """No collection is still to be made from the store: until then the journal forgets nothing."""
        return not self._opening

    # What namespaces take.

    def use(self, namespace: str) -> tuple[int, int]:
        """Rows and bytes."""
        mine = [collection for collection in self if collection.spec.namespace == namespace]
        return sum(one.serving.index.size for one in mine), sum(one.serving.index.bytes for one in mine)

    def check_quota(self, namespace: str, rows: int, size: int) -> None:
        """Whether so many more fit. Raises QuotaExceeded."""
        quota = self.config.quota(namespace)
        if (quota.max_vectors or quota.max_bytes) and (rows > 0 or size > 0):
            quota.check(namespace, self.use(namespace), (rows, size))

    # Inside.

    def _check_served(self, namespace: str) -> None:
        if not self.config.serves(namespace):
            raise PermissionDenied(f"namespace {namespace!r} is not served on this node; `allow` in its node.toml")

    def _check_moving(self) -> None:
        if self._still:
            raise NotReady("the vectors of this node are moved to another Milvus; ask again when that is done")

    def _check_new(self, spec: CollectionSpec, *, copy: bool) -> None:
        there = [one for one in self.specs if one.namespace == spec.namespace]
        if any(one.name == spec.name for one in there):
            raise AlreadyExists(f"collection {spec.name!r} is there already in namespace {spec.namespace!r}")
        self.specs.check_free(spec)
        if not copy:
            self.config.quota(spec.namespace).check_collections(spec.namespace, len(there))
        if len(list(self.specs)) >= limits.MAX_COLLECTIONS:
            raise InvalidInput(f"this node has {limits.MAX_COLLECTIONS} collections, and no room for another one")

    async def wait_for_store(self) -> Store:
        """Raises NotReady."""
        try:
            async with asyncio.timeout(OPEN_WITHIN_S):
                await self._store_there.wait()
        except TimeoutError:
            raise NotReady(f"the store of this node is not open: {self.store_error or 'it takes a while'}") from None
        assert self.store
        return self.store

    def _collection(self, spec: CollectionSpec, tables: list[OpenTable]) -> Collection:
        return Collection(spec, tables[0], self.desk, *tables[1:])

    def _saved(self, spec: CollectionSpec) -> list[OpenTable] | None:
        """None: it has to be made from the store."""
        try:
            found = [opening.saved(self.parts, table, self) for table in spec.tables]
        except (MeshError, OSError) as error:
            log.error("what was saved of collection=%s cannot be opened, it is made anew: %s", spec.name, error)
            return None
        return [table for table in found if table] if all(found) else None

    async def _make_anew(self, store: Store) -> None:
        """Those whose indexes are lost; what the store refuses is tried again."""
        for spec in [spec for spec in self.specs if spec.identity in self._opening]:
            make: Callable[..., OpenTable] = partial(
                opening.from_store, self.parts, store, self.journal, door=self, ends=lambda: self.ending
            )
            try:
                tables = [await asyncio.to_thread(make, table) for table in spec.tables]
            except (MeshError, OSError) as error:
                self.store_error = str(error)
                log.error("collection=%s cannot be made from the store: %s", spec.name, error)
                continue
            self.store_error = ""
            self._collections[spec.identity] = self._collection(spec, tables)
            self._opening.pop(spec.identity).set()

    async def _clear_away(self, store: Store) -> None:
        """What dropped collections have left."""
        # Two that are dropped at once would each clear away what the other has left.
        async with self._clearing:
            for gone in list(self.specs.dropped):
                try:
                    for table in gone.all_tables:
                        await asyncio.to_thread(store.drop, table.name)
                        await asyncio.to_thread(self.parts.remove, table)
                    async with self._making:
                        # It may have been made again meanwhile.
                        if all(spec.identity != gone.identity for spec in self.specs):
                            await asyncio.to_thread(self.ledger.drop, gone.identity)
                    await asyncio.to_thread(self.specs.forget, gone)
                except (MeshError, OSError) as error:
                    log.warning("dropped collection=%s is not cleared away yet: %s", gone.name, error)

    def _known(self, table: str) -> bool:
        return any(table == one.name for spec in self.specs for one in spec.tables)


def _saved(collection: Collection) -> None:
    """What differs from the journal is not to be kept."""
    for table in () if collection.broken else collection.tables:
        try:
            if table.unsaved is not None:
                table.save()
        except (MeshError, OSError) as error:
            log.warning("table=%s is not saved: %s", table.table.name, error)
