"""Rows on their way to a caller: no answer is larger than it may be, however long texts and vectors are."""

from __future__ import annotations

from collections.abc import Sequence

from nearmesh.errors import TooLarge
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors import wire
from nearmesh_agent.vectors.limits import MAX_ANSWER_BYTES
from nearmesh_agent.vectors.model import Index

# Rows that are in memory beside their messages; an engine is asked so many times less.
_AT_ONCE = 250


def part(index: Index, ids: Sequence[str], *, vectors: bool) -> tuple[list[pb.Row], int]:
    """Those that are there, in order, until the answer is large; and how many of the ids were looked up by then."""
    found: list[pb.Row] = []
    size = 0
    for start in range(0, len(ids), _AT_ONCE):
        rows = index.rows(ids[start : start + _AT_ONCE], vectors=vectors)
        messages = [wire.row_message(row, vector=vectors) for row in rows]
        found += messages
        size += sum(message.ByteSize() for message in messages)
        if size >= MAX_ANSWER_BYTES:
            return found, min(len(ids), start + _AT_ONCE)
    return found, len(ids)


def whole(index: Index, ids: Sequence[str], *, vectors: bool) -> list[pb.Row]:
    """Those that are there, in order. Raises TooLarge."""
    found, looked_up = part(index, ids, vectors=vectors)
    if looked_up < len(ids):
        raise too_large(len(ids))
    return found


def too_large(count: int) -> TooLarge:
    return TooLarge(
        f"the {count} rows take more than {MAX_ANSWER_BYTES} bytes; ask for fewer at a time, or without their vectors"
    )
