"""P3 for vectors: kill -9 while they are written loses nothing that was acknowledged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import vector_agents, vector_switches, vectors

# `make soak` does each of them twenty times.
KILLS = 1


def test_p3_every_acknowledged_write_is_there_after_a_kill(tmp_path: Path) -> None:
    """Of the process that writes, of Milvus Lite below it, and in the middle of a move to another store."""
    found = vectors.killed(tmp_path / "vectors", vectors.WHAT, KILLS)
    assert found["kills"] == 3 * KILLS and found["fewest_operations"] > KILLS


async def test_p3_a_kill_on_the_way_to_another_embedder_loses_nothing_and_the_switch_is_made(tmp_path: Path) -> None:
    found = await vector_switches.switched(tmp_path / "vectors", KILLS)
    assert not found.wrong and (found.kills, found.switches) == (KILLS, KILLS) and found.acknowledged > 10


@pytest.mark.timeout(300)
async def test_p3_a_node_whose_agent_and_vectors_are_killed_has_all_that_it_acknowledged(tmp_path: Path) -> None:
    """While rows are ingested, others written over and deleted, and all re-embedded or moved to another store."""
    found = await vector_agents.killed(tmp_path / "node", vector_agents.DOING, KILLS)
    assert found["kills"] == 4 * KILLS and found["fewest_of_a_collection"] > 20
