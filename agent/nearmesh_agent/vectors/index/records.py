"""What of a row only a hit shows, as bytes: everything but its vector."""

from __future__ import annotations

import json

from nearmesh_agent.vectors.model import Clock, Origin, Row, Vector

# What the numbers of a row take, with all that stands between them; and the number of a field.
_NUMBERS_BYTES, _NUMBER_BYTES = 192, 32


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


def most_bytes(row: Row) -> int:
    """About what it takes at most: every other character may have to be escaped, and numbers are short."""
    origin = row.origin
    texts = [row.id, row.text, origin.source, origin.hash, origin.position, *row.fields]
    texts += [value for value in row.fields.values() if isinstance(value, str)]
    return _NUMBERS_BYTES + _NUMBER_BYTES * len(row.fields) + 2 * sum(len(text.encode()) for text in texts)


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
