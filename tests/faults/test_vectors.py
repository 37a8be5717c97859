"""P3 for vectors: kill -9 while they are written loses nothing that was acknowledged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import vector_agents, vector_switches, vectors

# `make soak` does each of them twenty times.
KILLS = 1


@pytest.mark.parametrize("what", vectors.WHAT)
def test_p3_every_acknowledged_write_is_there_after_a_kill(tmp_path: Path, what: str) -> None:
    found = vectors.killed(tmp_path / "vectors", what, KILLS)
    assert found["operations"] > KILLS


async def test_p3_a_kill_on_the_way_to_another_embedder_loses_nothing_and_the_switch_is_made(tmp_path: Path) -> None:
    found = await vector_switches.switched(tmp_path / "vectors", KILLS)
    assert not found.wrong and (found.kills, found.switches) == (KILLS, KILLS) and found.acknowledged > 10


@pytest.mark.timeout(300)
@pytest.mark.parametrize("doing", vector_agents.DOING)
async def test_p3_a_node_whose_agent_and_vectors_are_killed_has_all_that_it_acknowledged(
    tmp_path: Path, doing: str
) -> None:
    found = await vector_agents.killed(tmp_path / "node", doing, 1)
    assert found["kills"] == 2 and found["acknowledged"] > 20
