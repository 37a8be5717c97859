"""BlobService: hands other nodes what this one has of a version, also while it is pulling that itself.

Inference comes first: few reads at a time, none is begun while the node is busy, and those under way go slowly then.
"""

from __future__ import annotations

import asyncio
import bisect
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nearmesh.errors import InvalidInput, NotFound, Overloaded
from nearmesh.ids import check_digest
from nearmesh.v1 import blob_pb2 as pb
from nearmesh.v1 import blob_pb2_grpc
from nearmesh_agent.store.draft import Draft
from nearmesh_agent.store.shelf import Shelf

# Reads at a time, also those that wait for a part.
MOST_READS = 16
# Of one read, and of its wait for each part; whoever wants more asks again.
MOST_BYTES = 64 * 1024 * 1024
MOST_WAIT_S = 30.0
# For a blob to begin to come: a node that does not pull it by then may never do so.
MOST_BEGIN_S = 3.0
# Of one message.
PIECE_BYTES = 256 * 1024
# While the node is busy: between two pieces; and when to ask again.
SLOWLY_S = 0.05
AGAIN_MS = 500
# In one question.
MOST_DIGESTS = 1000
MOST_RANGES = 10_000


class BlobServicer(blob_pb2_grpc.BlobServiceServicer):
    """Answers nodes of the mesh."""

    def __init__(
        self,
        shelf: Shelf,
        busy: Callable[[], bool] = lambda: False,
        given: Callable[[int], None] = lambda size_bytes: None,
    ) -> None:
        """`busy`: the node has its hands full with inference. `given` hears how many bytes are handed on."""
        self._shelf = shelf
        self._busy = busy
        self._given = given
        self._reads = 0

    async def Read(self, request: pb.ReadBlobRequest, context: Any) -> AsyncIterator[pb.ReadBlobResponse]:
        digest = check_digest(request.digest)
        if request.offset < 0 or not 0 < request.size <= MOST_BYTES:
            raise InvalidInput(f"a read of {request.size} bytes from {request.offset} on; 1 to {MOST_BYTES} are given")
        wait_s = min(request.wait_s, MOST_WAIT_S) if request.wait_s > 0 else 0.0
        with self._one_more():
            async for data in self._range(digest, request.offset, request.offset + request.size, wait_s):
                self._given(len(data))
                yield pb.ReadBlobResponse(data=data)
                if self._busy():
                    await asyncio.sleep(SLOWLY_S)

    async def Here(self, request: pb.HereRequest, context: Any) -> pb.HereResponse:
        if len(request.digests) > MOST_DIGESTS:
            raise InvalidInput(f"{len(request.digests)} blobs in one question; at most {MOST_DIGESTS}")
        answer = pb.HereResponse()
        # Each once, however often it is asked for: to look through a large one takes a while.
        for digest in dict.fromkeys(map(check_digest, request.digests)):
            for start, end in self._here(digest)[: MOST_RANGES - len(answer.ranges)]:
                answer.ranges.add(digest=digest, offset=start, size=end - start)
            if len(answer.ranges) == MOST_RANGES:
                break
        return answer

    def _here(self, digest: str) -> list[tuple[int, int]]:
        path, draft = self._shelf.whole(digest), self._shelf.draft(digest)
        if path:
            try:
                return [(0, path.stat().st_size)]
            except FileNotFoundError:
                # It has just been removed.
                return []
        return ranges(draft) if draft else []

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        if self._reads >= MOST_READS or self._busy():
            raise Overloaded("this node has no time for it", retry_after_ms=AGAIN_MS)
        self._reads += 1
        try:
            yield
        finally:
            self._reads -= 1

    async def _range(self, digest: str, start: int, end: int, wait_s: float) -> AsyncIterator[bytes]:
        fd = -1
        try:
            while start < end:
                if fd < 0 and (path := self._shelf.whole(digest)):
                    fd = await asyncio.to_thread(os.open, path, os.O_RDONLY)
                if fd >= 0:
                    data = await asyncio.to_thread(os.pread, fd, min(PIECE_BYTES, end - start), start)
                    if not data:
                        raise NotFound(f"{digest} has no byte {start}")
                else:
                    data = await self._part(digest, start, end, wait_s)
                start += len(data)
                if data:
                    yield data
        except FileNotFoundError:
            raise NotFound(f"{digest} is not on this node any more") from None
        finally:
            if fd >= 0:
                os.close(fd)

    async def _part(self, digest: str, start: int, end: int, wait_s: float) -> bytes:
        """What is there of a blob on its way, from `start` on, once it is; b"" when it has to be looked for anew."""
        draft = self._shelf.draft(digest)
        if draft is None:
            if not await self._shelf.begun(digest, min(wait_s, MOST_BEGIN_S)):
                raise NotFound(f"{digest} is not on this node")
            return b""
        number = number_of(draft, start)
        if number is None or not await self._shelf.has(draft, number, wait_s):
            raise NotFound(f"{digest} from byte {start} on is not on this node")
        if not draft.has(number):
            return b""
        data = await asyncio.to_thread(draft.read, number)
        first = draft.pieces.chunks[number].offset
        return data[start - first : end - first]


def number_of(draft: Draft, position: int) -> int | None:
    """The number of the chunk that has the byte; None beyond the end."""
    chunks = draft.pieces.chunks
    number = bisect.bisect_right(chunks, position, key=lambda chunk: chunk.offset) - 1
    return number if number >= 0 and position < chunks[number].end else None


def ranges(draft: Draft) -> list[tuple[int, int]]:
    """What is here of a blob on its way: first byte and end of each run of chunks."""
    found: list[tuple[int, int]] = []
    for number, chunk in enumerate(draft.pieces.chunks):
        if draft.has(number):
            if found and found[-1][1] == chunk.offset:
                found[-1] = (found[-1][0], chunk.end)
            else:
                found.append((chunk.offset, chunk.end))
    return found
