"""P3 for vectors: kill -9 while they are written loses nothing that was acknowledged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import vectors

# `make soak` does it twenty times each.
KILLS = 3


@pytest.mark.parametrize("what", vectors.WHAT)
def test_p3_every_acknowledged_write_is_there_after_a_kill(tmp_path: Path, what: str) -> None:
    found = vectors.killed(tmp_path / "vectors", what, KILLS)
    assert found["operations"] > KILLS
