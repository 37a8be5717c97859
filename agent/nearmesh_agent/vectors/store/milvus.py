"""The store on a Milvus server, standalone or distributed. What Lite does otherwise is in `lite`.

A write is in Milvus when it returns, and on its disk after `flush`. Where the server is away, each call waits for a
bounded time and says so; the journal keeps what was acknowledged meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nearmesh.errors import EngineFailure, InvalidInput, NotFound, Unsupported
from nearmesh_agent.vectors.model import Found, Row, Table, Vector, Where, Write
from nearmesh_agent.vectors.store import indexes, requests, schema
from nearmesh_agent.vectors.store.errors import NotLoaded, translated
from nearmesh_agent.vectors.store.schema import ID, VECTOR

if TYPE_CHECKING:
    from pymilvus import MilvusClient

T = TypeVar("T")

# A server that is there connects at once.
_CONNECT_S = 5.0
# Reading and writing some megabytes; a server that was away is tried for as long.
_CALL_S = 30.0
# A search that takes longer is of no use to who asked.
_SEARCH_S = 10.0
# Building an index, or writing out what came since the last time.
_LONG_S = 600.0
# Of one request: what servers take by default is 64 MiB.
_REQUEST_BYTES, _REQUEST_ROWS = 8 * 1024 * 1024, 1000
_IDS = 500
# Searches see what is older than this: Milvus's grace time is five seconds. To see fresher rows, each would wait.
SETTLE_S = 6.0


class MilvusStore:
    """Connects when it is first asked. Raises a MeshError that says what Milvus said."""

    engine = "Milvus"
    kinds: Sequence[indexes.Kind] = indexes.SERVER

    def __init__(self, uri: str, token: str = "", *, owner: str = "", settle_s: float = SETTLE_S) -> None:
        """`owner`: whose tables these are; what others keep in the same Milvus is not there for it.

        `settle_s`: after this time a written row is seen by `search`, by all other calls at once. 0 makes each search
        wait until it sees all; infinite: what is not flushed may be lost, and seen no more.
        """
        self._uri, self._token, self.settle_s = uri, token, settle_s
        self._prefix = f"{owner}_" if owner else ""
        self._client: MilvusClient | None = None
        self._connected_to = ""
        self._connecting = threading.Lock()
        self._tables: dict[str, Table] = {}
        # Until then, searches wait to see what there was before.
        self._settled_at_s: dict[str, float] = {}
        # Written to since the last flush.
        self._unflushed: set[str] = set()

    def tables(self) -> Sequence[str]:
        names = self._call("list_collections")
        return [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]

    def create(self, table: Table) -> None:
        """Makes the table if it is not there, and makes it ready to be read; each one that is used, at each start.
        What is in it by now, searches see from now on.

        Raises Unsupported for an index type that the engine does not build.
        """
        kind = indexes.chosen(table, self.kinds, self.engine)
        if not self._call("has_collection", table.name):
            self._make(table, kind)
        elif kind.name and not self._call("list_indexes", table.name):
            # Whoever made it ended half-way.
            self._build(table, kind)
        self._call("load_collection", table.name, timeout=_LONG_S)
        self._tables[table.name] = table
        self._settled_at_s[table.name] = time.monotonic() + self.settle_s

    def drop(self, table: str) -> None:
        self._tables.pop(table, None)
        self._unflushed.discard(table)
        if self._call("has_collection", table):
            self._call("drop_collection", table)

    def write(self, writes: Sequence[Write]) -> None:
        """In order; the same again changes nothing. Raises NotFound for a table that was not created."""
        for name, changes in _newest(writes).items():
            table = self._known(name)
            gone = [row_id for row_id, row in changes.items() if row is None]
            rows = [row for row in changes.values() if row is not None]
            self._unflushed.add(name)
            for ids in parts_of(gone, _IDS):
                self._call("delete", name, filter=schema.one_of(ids))
            for part in _requests(rows):
                self._put(table, part)

    def flush(self) -> None:
        """What was written is in segments on Milvus's own storage when it returns."""
        for name in tuple(self._unflushed):
            try:
                self._call("flush", name, timeout=_LONG_S)
            except NotFound:
                # Dropped while it was written to; no flush would ever end.
                if name in self._tables:
                    raise
            self._unflushed.discard(name)

    def get(self, table: str, ids: Sequence[str]) -> Sequence[Row]:
        found = {row.id: row for part in parts_of(ids, _IDS) for row in self._rows(table, schema.one_of(part))}
        return [found[row_id] for row_id in dict.fromkeys(ids) if row_id in found]

    def scan(
        self, table: str, *, after: str = "", batch: int = 1000, where: Where | None = None
    ) -> Iterator[Sequence[Row]]:
        taken = f" and ({where.milvus()})" if where else ""
        while True:
            # As pymilvus's own iterator asks, which is sure of the order of the keys only so.
            page = {"limit": batch, "iterator": "True", "reduce_stop_for_best": "True"}
            rows = self._rows(table, f"{ID} > {schema.quoted(after)}{taken}", **page)
            if not rows:
                return
            after = rows[-1].id
            yield from parts_of(rows, batch)

    def everything(self, table: str) -> Iterator[Sequence[Row]]:
        return self.scan(table)

    def count(self, table: str, where: Where | None = None) -> int:
        counted = self._ask("query", table, filter=where.milvus() if where else "", output_fields=["count(*)"])
        return int(counted[0]["count(*)"])

    def search(self, table: str, vector: Vector, k: int, where: Where | None = None) -> Sequence[Found]:
        known = self._known(table)
        settled = self.settle_s and time.monotonic() >= self._settled_at_s[table]
        kind = indexes.chosen(known, self.kinds, self.engine)
        (hits,) = self._ask(
            "search",
            table,
            data=[np.asarray(vector, np.float32)],
            anns_field=VECTOR,
            limit=k,
            filter=where.milvus() if where else "",
            search_params={"metric_type": schema.METRICS[known.metric], "params": dict(kind.search(k))},
            consistency_level="Bounded" if settled else "Strong",
            timeout=_SEARCH_S,
        )
        return [Found(hit[ID], float(hit["distance"])) for hit in hits]

    def close(self) -> None:
        """Safe to repeat."""
        self._disconnect()

    def _make(self, table: Table, kind: indexes.Kind) -> None:
        from pymilvus import DataType

        client = self._connected()
        made = client.create_schema(auto_id=False, enable_dynamic_field=False)
        for column in schema.columns(table):
            sizes = (
                {"dim": column.size} if column.name == VECTOR else {"max_length": column.size} if column.size else {}
            )
            made.add_field(column.name, DataType[column.type], is_primary=column.primary, **sizes)
        self._call("create_collection", table.name, schema=made, consistency_level="Strong")
        try:
            if kind.name:
                self._build(table, kind)
        except (InvalidInput, EngineFailure) as error:
            # Empty as it is, it could not be searched.
            self._call("drop_collection", table.name)
            raise Unsupported(f"index type {kind.name!r} for {table.name!r}: {error.message}") from error

    def _build(self, table: Table, kind: indexes.Kind) -> None:
        params = self._connected().prepare_index_params()
        metric = schema.METRICS[table.metric]
        params.add_index(VECTOR, index_type=kind.name, metric_type=metric, params=dict(kind.build(table.dimension)))
        self._call("create_index", table.name, index_params=params, timeout=_LONG_S)

    def _put(self, table: Table, rows: Sequence[Row]) -> None:
        self._send("upsert", table, upsert_param=requests.upsert(self._named(table.name), table, rows))

    def _rows(self, name: str, expression: str, **more: Any) -> Sequence[Row]:
        table = self._known(name)
        names = [column.name for column in schema.columns(table)]
        found = self._ask("query", name, filter=expression, output_fields=names, **more)
        return [schema.row(record, table) for record in found]

    def _known(self, table: str) -> Table:
        found = self._tables.get(table)
        if found is None:
            raise NotFound(f"no table {table!r} in Milvus at {self._uri}")
        return found

    def _ask(self, method: str, table: str, **arguments: Any) -> Any:
        """A call that reads; what Milvus has let go of is loaded again. It sees what was written before."""
        arguments = {"consistency_level": "Strong", **arguments}
        self._known(table)
        try:
            return self._call(method, table, **arguments)
        except NotLoaded:
            self._call("load_collection", table, timeout=_LONG_S)
            return self._call(method, table, **arguments)

    def _call(self, method: str, table: str = "", *, timeout: float = _CALL_S, **arguments: Any) -> Any:
        client = self._connected()
        name = [self._named(table)] if table else []
        with self._translated():
            return getattr(client, method)(*name, timeout=timeout, **arguments)

    def _send(self, method: str, table: Table, **request: Any) -> None:
        """A request that is made already. pymilvus asks for rows and a schema beside it, and uses neither."""
        client = self._connected()
        with self._translated():
            # The client may have been closed in between.
            send = getattr(client._get_connection(), method)
            send(self._named(table.name), [], timeout=_CALL_S, schema={"fields": None}, **request)

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self._uri)

    def _named(self, table: str) -> str:
        return self._prefix + table

    def _connected(self) -> MilvusClient:
        from pymilvus import MilvusClient

        # It logs with a traceback what it raises, and we say it ourselves.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        address = self._address()
        with self._connecting, self._translated():
            if self._client is None or address != self._connected_to:
                if self._client is not None:
                    self._client.close()
                self._client = None
                self._client = MilvusClient(address, token=self._token, timeout=_CONNECT_S, dedicated=True)
                self._connected_to = address
            return self._client

    def _disconnect(self) -> None:
        """Calls that are under way fail."""
        with self._connecting:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _address(self) -> str:
        return self._uri


def parts_of(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """One after the other, of at most `size`."""
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _newest(writes: Sequence[Write]) -> Mapping[str, Mapping[str, Row | None]]:
    """What becomes of each row of each table; None: it is deleted."""
    tables: dict[str, dict[str, Row | None]] = {}
    for write in writes:
        rows = tables.setdefault(write.table, {})
        rows.update((row.id, row) for row in write.rows)
        rows.update(dict.fromkeys(write.deleted))
    return tables


def _requests(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Parts that fit into a request each."""
    part: list[Row] = []
    size = 0
    for row in rows:
        bytes_more = row.vector.nbytes + 4 * len(row.text) + sum(len(str(value)) for value in row.fields.values())
        if part and (size + bytes_more > _REQUEST_BYTES or len(part) == _REQUEST_ROWS):
            yield part
            part, size = [], 0
        part.append(row)
        size += bytes_more
    if part:
        yield part
