"""An import into the process that keeps a node's vectors, which is killed in the middle of it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

from nearmesh.client.vectors import Collection, VectorClient, vector_of
from nearmesh.ingest.files import find
from nearmesh.ingest.importer import Wish, run
from nearmesh.ingest.plan import Tally
from nearmesh.v1 import vector_pb2 as pb
from tests.integration.vector_node import DOCS, VectorNode, create, vector, vector_node

RECORDS = 6000


def write(path: Path, numbers: range, text: str) -> None:
    """Records with vectors of their own."""
    lines = (
        {"id": number, "text": f"{text} {number}", "vector": vector_of(pb.Row(vector=vector(number))).tolist()}
        for number in numbers
    )
    path.write_text("\n".join(map(json.dumps, lines)))


def collection(of: VectorNode) -> Collection:
    client = VectorClient("here", b"", "")
    client.stub = of.stub
    return client.collection(DOCS.name)


class Importing:
    """An import under way; `reached` waits for a number of rows, which must not be all."""

    def __init__(self, node: VectorNode, docs: Path) -> None:
        self._rows, self._wanted, self._there = 0, 0, asyncio.Event()
        self._task = asyncio.create_task(run(collection(node), find([docs]), Wish(), self._told))

    def _told(self, tally: Tally) -> None:
        self._rows = tally.rows_written + tally.rows_unchanged
        if self._rows >= self._wanted:
            self._there.set()

    async def reached(self, rows: int) -> None:
        self._wanted = rows
        self._there.clear()
        await asyncio.wait({self._task, asyncio.create_task(self._there.wait())}, return_when=asyncio.FIRST_COMPLETED)
        assert not self._task.done(), "it was over before the kill"

    async def end(self) -> Tally:
        return await self._task


async def test_an_import_goes_on_while_the_process_is_killed(tmp_path: Path) -> None:
    """Nothing is lost, nothing is there twice, and what has gone is gone."""
    docs = tmp_path / "docs"
    docs.mkdir()
    write(docs / "a.jsonl", range(RECORDS), "first")
    async with vector_node(tmp_path / "vectors") as node:
        await create(node)
        importing = Importing(node, docs)
        for share in (0.25, 0.6):
            await importing.reached(int(share * RECORDS))
            await node.kill()
        tally = await importing.end()
        assert (tally.new, tally.problem_count) == (RECORDS, 0)
        assert await counted(node) == Counter(range(RECORDS))
        left = range(RECORDS // 4, RECORDS)
        write(docs / "a.jsonl", left, "second")
        importing = Importing(node, docs)
        await importing.reached(1)
        await node.kill()
        tally = await importing.end()
        assert (tally.changed, tally.deleted) == (len(left), RECORDS - len(left))
        assert await counted(node) == Counter(left)
        assert {row.text.split()[0] async for row in collection(node).rows()} == {"second"}


async def counted(node: VectorNode) -> Counter[int]:
    """How often each record is there."""
    return Counter(int(name.rpartition("/")[2].removesuffix("#0")) for name in await node.ids())
