"""An index of vectors as plain as can be, and rows for it: what the parts of retrieval are tried on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from nearmesh_agent.vectors.model import Found, Metric, Row, Where, Write
from nearmesh_agent.vectors.text import retrieve


def row(id: str, text: str = "", vector: Sequence[float] = (1.0, 0.0), **fields) -> Row:
    return Row(id=id, text=text, vector=np.array(vector, np.float32), fields=fields)


def write(*rows: Row, deleted: Sequence[str] = ()) -> Write:
    return Write(table="t", rows=rows, deleted=deleted)


@dataclass
class Only:
    """A filter by a function of the row."""

    takes: Callable[[Row], bool]

    def matches(self, row: Row) -> bool:
        return self.takes(row)

    def milvus(self) -> str:
        raise NotImplementedError


class PlainIndex:
    """`model.Index` by looking at every row."""

    def __init__(self, metric: Metric = Metric.COSINE) -> None:
        self.metric = metric
        self.here: dict[str, Row] = {}
        self.position = 0

    def apply(self, written: Write, position: int) -> None:
        for id in written.deleted:
            self.here.pop(id, None)
        self.here |= {each.id: each for each in written.rows}
        self.position = position

    def search(self, vector, k: int, where: Where | None = None, *, exact: bool = False):
        rows = [each for each in self.here.values() if where is None or where.matches(each)]
        if not rows:
            return [], "exact"
        said = retrieve.scores(vector, np.stack([each.vector for each in rows]), self.metric)
        lower_first = 1 if self.metric is Metric.L2 else -1
        order = sorted(range(len(rows)), key=lambda i: (lower_first * said[i], rows[i].id))
        return [Found(rows[i].id, float(said[i])) for i in order[:k]], "exact"

    def rows(self, ids: Iterable[str], *, vectors: bool = False) -> Sequence[Row]:
        return [self.here[id] for id in ids if id in self.here]

    def select(self, where: Where | None, *, after: str = "", limit: int | None = None) -> Sequence[str]:
        found = sorted(id for id, each in self.here.items() if id > after and (where is None or where.matches(each)))
        return found[:limit]

    def maintain(self) -> None:
        pass

    def save(self) -> int:
        return self.position

    @property
    def size(self) -> int:
        return len(self.here)

    @property
    def bytes(self) -> int:
        return 0

    @property
    def fresh(self) -> int:
        return len(self.here)
