"""P3 with two control planes over PostgreSQL: either is killed or frozen, and the database restarts. Nothing that was
acknowledged is lost, one leader acts at a time, and no call notices."""

from __future__ import annotations

from pathlib import Path

from tests.faults.control_planes import KINDS, tried
from tests.postgres import Postgres


async def test_p3_a_pair_of_control_planes_outlives_either(tmp_path: Path, database_server: Postgres) -> None:
    figures = await tried(tmp_path, database_server, faults=len(KINDS), seed=1)
    assert figures["acts"]["terms"] >= 3
    assert len(figures["replaced_s"]) == 2, figures
    assert min(figures["acknowledged"].values()) > 10, "the writers got nothing done: the test proves nothing"
