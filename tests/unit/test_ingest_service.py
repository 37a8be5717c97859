"""An import into a node's VectorService: what it asks is what the service answers."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from nearmesh_agent.vectors import filters
from nearmesh_agent.vectors.model import FieldType

from nearmesh.client.vectors import Collection, VectorClient
from nearmesh.errors import NotFound
from nearmesh.ingest.files import find
from nearmesh.ingest.importer import Wish, run
from nearmesh.ingest.plan import Tally
from nearmesh.ingest.sources import Rules
from nearmesh.ingest.split import Sizes
from nearmesh.v1 import vector_pb2 as pb
from tests.vector_parts import DictParts
from tests.vector_site import Site, bytes_of, ref, site


class Parts(DictParts):
    """With filters as nodes read them."""

    def read_filter(self, text: str, fields: Mapping[str, FieldType]) -> Any:
        return filters.read(text, fields)


class Stub:
    """Hands calls to a site's servicer, and makes vectors of texts, as the agent does before."""

    def __init__(self, of: Site) -> None:
        self._site = of

    def __getattr__(self, method: str) -> Callable[..., Any]:
        async def call(request: Any, *, timeout: float, metadata: Any) -> Any:
            for row in request.rows if method == "Upsert" else ():
                digest = hashlib.sha256(row.text.encode()).digest()
                row.vector = row.vector or bytes_of(1 + digest[0], 1 + digest[1])
            return await self._site.ask(method, request)

        return call


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path / "node", Parts()) as found:
        await found.create(embedder="encoder", embedder_digest="sha256:" + "ab" * 32)
        yield found


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("A sentence of many. " * 30)
    (folder / 'b "quoted" \\.txt').write_text("Others. " * 30)
    (folder / "c.jsonl").write_text('{"id": 1, "text": "One.", "lang": "en"}\n{"id": 2, "text": "Two.", "year": 2}\n')
    return folder


def collection(of: Site, name: str = "docs") -> Collection:
    client = VectorClient("node-a:8001", b"", "token")
    client.stub = Stub(of)  # type: ignore[assignment]
    return client.collection(name)


async def bring(into: Site, *paths: Path) -> Tally:
    return await run(collection(into), find(paths), Wish(rules=Rules(sizes=Sizes(100, 20))))


async def test_documents_come_change_and_go(here: Site, docs: Path) -> None:
    tally = await bring(here, docs)
    assert (tally.new, tally.problem_count) == (4, 0) and tally.rows_written > 8
    (one,) = (await here.ask("Fetch", pb.FetchRequest(collection=ref(), ids=["docs/c.jsonl/1#0"]))).rows
    assert (one.text, one.fields["lang"].string, one.origin.position) == ("One.", "en", "line 1")
    assert (await bring(here, docs)).unchanged == 4
    for name in ("a.txt", 'b "quoted" \\.txt'):
        (docs / name).write_text("Short.")
    (docs / "c.jsonl").write_text('{"id": 2, "text": "Two.", "year": 2}')
    tally = await bring(here, docs)
    assert (tally.changed, tally.unchanged, tally.deleted) == (2, 1, 1)
    assert await here.ids() == ["docs/a.txt#0", 'docs/b "quoted" \\.txt#0', "docs/c.jsonl/2#0"]


async def test_a_record_that_the_service_refuses_is_told(here: Site, docs: Path) -> None:
    (docs / "c.jsonl").write_text('{"id": 1, "text": "One.", "lang": "' + "x" * 9000 + '"}\n{"id": 2, "text": "Two."}')
    tally = await bring(here, docs / "c.jsonl")
    (problem,) = tally.problems
    assert "docs/c.jsonl/1, line 1: the node refuses it: row 'docs/c.jsonl/1#0': field 'lang' has 9000" in str(problem)
    assert await here.ids() == ["docs/c.jsonl/2#0"]


async def test_a_collection_that_is_not_there(here: Site, docs: Path) -> None:
    with pytest.raises(NotFound, match="no collection 'other'"):
        await run(collection(here, "other"), find([docs]), Wish())
