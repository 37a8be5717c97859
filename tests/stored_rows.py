"""Rows and tables for tests of where vectors are kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from nearmesh_agent.vectors.model import Clock, FieldType, Metric, Origin, Row, Scalar, Table

DIMENSION = 8
FIELDS = {"pages": FieldType.INT, "price": FieldType.FLOAT, "language": FieldType.STRING, "draft": FieldType.BOOL}


def table(name: str = "books", metric: Metric = Metric.COSINE, **more: str) -> Table:
    return Table(name=name, dimension=DIMENSION, metric=metric, fields=FIELDS, **more)


def row(row_id: str, seed: int = 0, fields: Mapping[str, Scalar] | None = None) -> Row:
    """One that has something everywhere; another seed is another content."""
    generator = np.random.default_rng([seed, *row_id.encode()])
    return Row(
        id=row_id,
        vector=generator.standard_normal(DIMENSION, dtype=np.float32),
        text=f"text {seed} of {row_id}",
        fields={"pages": seed, "price": seed + 0.5, "language": "en", "draft": True} if fields is None else fields,
        origin=Origin(source=f"{row_id}.md", hash="5e", part=seed, parts=9, position="page 3"),
        clock=Clock(written=2**40 + seed, written_after=7, deleted=3),
        written_at_s=1000.25 + seed,
    )


def told(found: Row) -> tuple[object, ...]:
    """A row as a value that compares: arrays do not."""
    fields = {name: (type(value).__name__, value) for name, value in found.fields.items()}
    return (found.id, found.vector.tobytes(), found.text, fields, found.origin, found.clock, found.written_at_s)
