"""What a node hands to others of its site, and what it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nearmesh_agent.store.blobs import MOST_BYTES, MOST_DIGESTS, MOST_READS, BlobServicer
from nearmesh_agent.store.draft import Draft
from nearmesh_agent.store.pieces import Pieces
from nearmesh_agent.store.shelf import Shelf

from nearmesh.errors import InvalidInput, NotFound, Overloaded
from nearmesh.oci import WEIGHT_TYPE, Descriptor, digest_bytes
from nearmesh.v1 import blob_pb2 as pb
from tests.store_site import CHUNK_BYTES, cut

DATA = bytes(range(256)) * 4096
DIGEST = digest_bytes(DATA)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "whole"
        self.shelf = Shelf(lambda digest: self.file if self.file.exists() and digest == DIGEST else None)
        self.busy = False
        self.servicer = BlobServicer(self.shelf, lambda: self.busy)
        self.draft = Draft(folder / "drafts", Pieces(Descriptor(WEIGHT_TYPE, DIGEST, len(DATA)), cut(DATA)))

    def begin(self) -> None:
        self.draft.open()
        self.shelf.put(self.draft)

    def bring(self, number: int) -> None:
        chunk = self.draft.pieces.chunks[number]
        self.draft.put(number, memoryview(DATA)[chunk.offset : chunk.end])
        self.shelf.arrived(DIGEST, number)

    def finish(self) -> None:
        self.draft.finish(self.file)
        self.shelf.take(DIGEST)

    async def read(self, offset: int, size: int, wait_s: float = 0.0, digest: str = DIGEST) -> bytes:
        request = pb.ReadBlobRequest(digest=digest, offset=offset, size=size, wait_s=wait_s)
        return b"".join([answer.data async for answer in self.servicer.Read(request, None)])


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.draft.close()


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (5, 300_000), (0, len(DATA)), (len(DATA) - 3, 3)])
async def test_ranges_of_a_whole_blob(bench: Bench, offset: int, size: int) -> None:
    bench.file.write_bytes(DATA)
    assert await bench.read(offset, size) == DATA[offset : offset + size]


async def test_ranges_of_one_that_is_on_its_way(bench: Bench) -> None:
    bench.begin()
    for number in (1, 2):
        bench.bring(number)
    start = CHUNK_BYTES + 100
    assert await bench.read(start, CHUNK_BYTES) == DATA[start : start + CHUNK_BYTES]
    with pytest.raises(NotFound):
        await bench.read(0, 10)
    answer = await bench.servicer.Here(pb.HereRequest(digests=[DIGEST, digest_bytes(b"other")]), None)
    assert [(r.digest, r.offset, r.size) for r in answer.ranges] == [(DIGEST, CHUNK_BYTES, 2 * CHUNK_BYTES)]


async def test_who_asks_for_one_blob_a_thousand_times_is_told_of_it_once(bench: Bench) -> None:
    bench.begin()
    for number in (0, 2):
        bench.bring(number)
    answer = await bench.servicer.Here(pb.HereRequest(digests=[DIGEST] * MOST_DIGESTS), None)
    assert [(r.offset, r.size) for r in answer.ranges] == [(0, CHUNK_BYTES), (2 * CHUNK_BYTES, CHUNK_BYTES)]
    with pytest.raises(InvalidInput):
        await bench.servicer.Here(pb.HereRequest(digests=[DIGEST] * (MOST_DIGESTS + 1)), None)


async def test_what_is_removed_while_somebody_asks_is_not_here(bench: Bench, tmp_path: Path) -> None:
    servicer = BlobServicer(Shelf(lambda _: tmp_path / "gone"))
    assert not (await servicer.Here(pb.HereRequest(digests=[DIGEST]), None)).ranges


async def test_who_waits_gets_each_chunk_when_it_comes_and_the_rest_when_the_blob_is_whole(bench: Bench) -> None:
    waiting = asyncio.create_task(bench.read(0, len(DATA), wait_s=20.0))
    await asyncio.sleep(0)
    bench.begin()
    for number in (1, 0):
        bench.bring(number)
        await asyncio.sleep(0.01)
    assert not waiting.done()
    for number in range(2, len(bench.draft.pieces.chunks)):
        bench.bring(number)
    bench.finish()
    assert await waiting == DATA


async def test_who_waits_in_vain_is_told_so(bench: Bench) -> None:
    for begun in (False, True):
        if begun:
            bench.begin()
        with pytest.raises(NotFound):
            await bench.read(0, 10, wait_s=0.05)
    waiting = asyncio.create_task(bench.read(0, 10, wait_s=20.0))
    await asyncio.sleep(0.01)
    # The pull is given up, and nobody begins another one.
    bench.shelf.take(DIGEST)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not bench.shelf._waiting


@pytest.mark.parametrize(
    ("offset", "size", "digest"), [(-1, 5, DIGEST), (0, 0, DIGEST), (0, MOST_BYTES + 1, DIGEST), (0, 1, "../etc")]
)
async def test_what_is_no_question(bench: Bench, offset: int, size: int, digest: str) -> None:
    with pytest.raises(InvalidInput):
        await bench.read(offset, size, digest=digest)


async def test_beyond_the_end_there_is_nothing(bench: Bench) -> None:
    bench.file.write_bytes(DATA)
    with pytest.raises(NotFound):
        await bench.read(len(DATA), 1)


async def test_inference_comes_first(bench: Bench) -> None:
    bench.file.write_bytes(DATA)
    bench.busy = True
    with pytest.raises(Overloaded):
        await bench.read(0, 1)


async def test_so_many_read_at_a_time_and_no_more(bench: Bench) -> None:
    waiting = [asyncio.create_task(bench.read(0, 1, wait_s=20.0)) for _ in range(MOST_READS)]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded) as caught:
        await bench.read(0, 1)
    assert caught.value.retry_after_ms
    bench.begin()
    bench.bring(0)
    assert await asyncio.gather(*waiting) == [DATA[:1]] * MOST_READS
    assert await bench.read(0, 1) == DATA[:1]
