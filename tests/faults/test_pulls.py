"""Pulls and the death of the process that makes them. Full counts: `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.pulls import killed_while_pulling


@pytest.mark.timeout(180)
async def test_p5_an_agent_that_is_killed_while_it_pulls_goes_on_and_loads_nothing_torn(tmp_path: Path) -> None:
    found = await killed_while_pulling(tmp_path, kills=3, seed=1)
    assert found["kills"] == 3
