"""`Retrieve` as the process answers it that keeps the vectors: the text's vector comes with the request."""

from __future__ import annotations

import time
from typing import Protocol

from nearmesh.errors import InvalidInput, Superseded
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors import limits, wire
from nearmesh_agent.vectors.collections import CollectionSpec
from nearmesh_agent.vectors.model import Vector, Where
from nearmesh_agent.vectors.table import OpenTable
from nearmesh_agent.vectors.text import fusion
from nearmesh_agent.vectors.text.retrieve import Ask, Mode, Passage, retrieve

# Of a question; an encoder reads less.
MAX_QUERY_BYTES = 16_384
MODES = {
    pb.RetrieveRequest.MODE_HYBRID: Mode.HYBRID,
    pb.RetrieveRequest.MODE_DENSE: Mode.DENSE,
    pb.RetrieveRequest.MODE_LEXICAL: Mode.LEXICAL,
}


class Asked(Protocol):
    """The collection, as a question sees it."""

    @property
    def spec(self) -> CollectionSpec: ...

    @property
    def serving(self) -> OpenTable: ...


def answered(
    request: pb.RetrieveRequest, collection: Asked, where: Where | None, *, node: str, site: str
) -> pb.RetrieveResponse:
    """Blocks. Raises InvalidInput, and Superseded for a vector of another generation."""
    began_s = time.perf_counter()
    table, spec = collection.serving, collection.spec
    if spec.table.name != table.table.name:
        raise Superseded(f"another generation of collection {spec.name!r} takes over at this moment")
    ask = read(request, spec, table, where)
    found = retrieve(table.index, table.lexical, table.table.metric, ask)
    return pb.RetrieveResponse(
        hits=[hit(each, node=node, site=site) for each in found.found],
        timings=pb.RetrieveResponse.Timings(
            dense_ms=found.dense_ms,
            lexical_ms=found.lexical_ms,
            total_ms=1000 * (time.perf_counter() - began_s),
        ),
        metric=wire.metric_number(table.table.metric),
        identity=spec.identity,
    )


def read(request: pb.RetrieveRequest, spec: CollectionSpec, table: OpenTable, where: Where | None) -> Ask:
    """Raises InvalidInput, Superseded."""
    check_query(request.text)
    check_embedder(request.embedder_digest, spec)
    vector: Vector | None = None
    if request.vector:
        vector = limits.check_vector(request.vector, table.table, "the text's vector")
    return Ask(
        text=request.text,
        vector=vector,
        k=limits.check_k(request.k),
        where=where,
        mode=mode_of(request, has_vector=vector is not None),
        weight=request.dense_weight if request.HasField("dense_weight") else fusion.DENSE_WEIGHT,
    )


def mode_of(request: pb.RetrieveRequest, *, has_vector: bool) -> Mode:
    """Without a word of the caller's, both ways where there is a vector. Raises InvalidInput."""
    if request.mode == pb.RetrieveRequest.MODE_DEFAULT:
        return Mode.HYBRID if has_vector else Mode.LEXICAL
    found = MODES.get(request.mode)
    if found is None:
        raise InvalidInput(f"mode {request.mode} is none of hybrid, dense and lexical")
    return found


def check_embedder(digest: str, spec: CollectionSpec) -> None:
    """Of vectors that came with a request; empty: they are the caller's own. Raises Superseded."""
    if digest not in ("", spec.serving.digest):
        raise Superseded(
            f"the vectors were made by {digest}, and collection {spec.name!r} has those of {spec.serving.digest} by now"
        )


def check_query(text: str) -> None:
    """Raises InvalidInput."""
    if not text.strip():
        raise InvalidInput("the text is empty; expected a question or words")
    if (size := len(text.encode("utf-8", "surrogatepass"))) > MAX_QUERY_BYTES:
        raise InvalidInput(f"the text has {size} bytes; a question has at most {MAX_QUERY_BYTES}")


def hit(passage: Passage, *, node: str, site: str) -> pb.Hit:
    fused = passage.fused
    return pb.Hit(
        row=wire.row_message(passage.row),
        score=fused.score,
        node=node,
        site=site,
        dense_score=fused.dense_score,
        dense_rank=fused.dense_rank,
        lexical_score=fused.lexical_score,
        lexical_rank=fused.lexical_rank,
    )
