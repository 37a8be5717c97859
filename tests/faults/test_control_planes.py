"""P3 with two control planes over PostgreSQL: either of them is killed or frozen, and nothing that was acknowledged is
lost, one leader acts at a time, and no call notices."""

from __future__ import annotations

from pathlib import Path

from tests.faults.control_planes import killed_and_frozen
from tests.postgres import Postgres


async def test_p3_a_pair_of_control_planes_outlives_either(tmp_path: Path, database_server: Postgres) -> None:
    figures = await killed_and_frozen(tmp_path, database_server, faults=3, seed=1)
    assert figures["acts"]["terms"] >= 3
    assert len(figures["replaced_s"]) == 2
    assert min(figures["acknowledged"].values()) > 10, "the writers got nothing done: the test proves nothing"
    print(figures)
