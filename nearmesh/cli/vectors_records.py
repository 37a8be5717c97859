"""Collections and rows as plain values: exactly what `--json` prints, and what the tables are made of.

The names are a promise to programs: they are added to, never changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nearmesh.cli.records import Record
from nearmesh.client.passages import vector_of
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.vector_values import FIELD_KIND_NAMES, METRIC_NAMES, value_of


def collection(message: pb.Collection) -> Record:
    return {
        "namespace": message.collection.namespace,
        "collection": message.collection.name,
        "rows": message.rows,
        "bytes": message.bytes,
        "fresh_rows": message.fresh_rows,
        "dimension": message.dimension,
        "metric": METRIC_NAMES.get(message.metric, "unknown"),
        "embedder": message.embedder or None,
        "embedder_digest": message.embedder_digest or None,
        "embedder_stale": message.embedder_stale,
        "generation": message.generation,
        # Share of the rows that it has.
        "next_generation": message.next_generation if message.next_generation_number else None,
        "next_generation_number": message.next_generation_number or None,
        "fields": {field.name: FIELD_KIND_NAMES.get(field.type, "unknown") for field in message.fields},
        "description": message.description,
        "site": message.site,
        "replicate_to": list(message.replicate_to),
        "regions": list(message.regions),
        "index_type": message.index_type or None,
        "language": message.language or None,
        "served_by": message.served_by,
        "recall": None if message.recall < 0 else message.recall,
        "created_at_s": message.created_at_s,
        "written_at_s": message.written_at_s,
        "replicas": [replica(one) for one in message.replicas],
    }


def replica(message: pb.Collection.Replica) -> Record:
    return {
        "site": message.site,
        "acknowledged": message.acknowledged,
        "lag_rows": message.lag_rows,
        "lag_s": message.lag_s,
        "connected": message.connected,
        "detail": message.detail,
    }


def use(message: pb.NamespaceUse) -> Record:
    """A limit that is 0 is none."""
    return {
        "namespace": message.namespace,
        "rows": message.rows,
        "max_rows": message.max_rows or None,
        "bytes": message.bytes,
        "max_bytes": message.max_bytes or None,
        "requests_per_second": message.requests_per_second,
        "max_requests_per_second": message.max_requests_per_second or None,
    }


def row(message: pb.Row) -> Record:
    origin = message.origin
    found: Record = {
        "id": message.id,
        "text": message.text,
        "fields": {name: value_of(value) for name, value in sorted(message.fields.items())},
        "source": origin.source or None,
        "hash": origin.hash or None,
        "part": origin.part,
        "parts": origin.parts,
        "position": origin.position or None,
    }
    if message.vector:
        found["vector"] = vector_of(message).tolist()
    return found


def hit(message: pb.Hit) -> Record:
    return {
        "score": message.score,
        "node": message.node,
        "site": message.site,
        "dense_score": message.dense_score,
        "dense_rank": message.dense_rank or None,
        "lexical_score": message.lexical_score,
        "lexical_rank": message.lexical_rank or None,
        "rerank_score": message.rerank_score,
        **row(message.row),
    }


def contributions(messages: Iterable[pb.Contribution]) -> list[Record]:
    return [
        {
            "node": one.node,
            "site": one.site,
            "region": one.region,
            "hits": one.hits,
            "ms": one.ms,
            "missing": one.missing or None,
        }
        for one in messages
    ]


def search(message: pb.SearchResponse) -> Record:
    return {
        "hits": [hit(one) for one in message.hits],
        "contributions": contributions(message.contributions),
        "took_ms": message.took_ms,
        "way": message.way,
    }


def retrieved(message: pb.RetrieveResponse) -> Record:
    timings = message.timings
    return {
        "hits": [hit(one) for one in message.hits],
        "contributions": contributions(message.contributions),
        "timings": {
            "embed_ms": timings.embed_ms,
            "dense_ms": timings.dense_ms,
            "lexical_ms": timings.lexical_ms,
            "rerank_ms": timings.rerank_ms,
            "total_ms": timings.total_ms,
        },
    }


def source(message: pb.Source) -> Record:
    return {
        "source": message.name,
        "hash": message.hash,
        "parts_here": message.parts_here,
        "parts": message.parts,
        "stale_parts": message.stale_parts,
        "written_at_s": message.written_at_s,
    }


def receipt(message: pb.ListReceiptsResponse.Receipt) -> Record:
    return {
        "id": message.id,
        "change": message.change,
        "deleted_at_s": message.deleted_at_s,
        "sites": [
            {"site": one.site, "node": one.node, "acknowledged_at_s": one.acknowledged_at_s or None}
            for one in message.sites
        ],
    }


def progress(message: Any) -> Record:
    """Of a re-embedding or a migration."""
    if isinstance(message, pb.MigrateProgress):
        return {
            "phase": message.phase,
            "collection": message.collection,
            "rows_done": message.rows_done,
            "rows_total": message.rows_total,
        }
    return {
        "rows_done": message.rows_done,
        "rows_total": message.rows_total,
        "generation": message.generation,
        "switched": message.switched,
    }
