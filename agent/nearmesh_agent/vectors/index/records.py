"""What of a row only a hit shows, as bytes: everything but its vector."""

from __future__ import annotations

import json

from nearmesh_agent.vectors.model import Clock, Origin, Row, Vector


def encode(row: Row) -> bytes:
    origin, clock = row.origin, row.clock
    values = (
        row.id,
        row.text,
        dict(row.fields),
        (origin.source, origin.hash, origin.part, origin.parts, origin.position),
        (clock.written, clock.written_after, clock.deleted),
        row.written_at_s,
    )
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def decode(data: bytes, vector: Vector) -> Row:
    id_, text, fields, (source, hash_, part, parts, position), (written, after, deleted), at_s = json.loads(data)
    return Row(
        id=id_,
        vector=vector,
        text=text,
        fields=fields,
        origin=Origin(source=source, hash=hash_, part=part, parts=parts, position=position),
        clock=Clock(written=written, written_after=after, deleted=deleted),
        written_at_s=at_s,
    )
