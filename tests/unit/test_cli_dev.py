"""`nearmesh dev up --once`: the table, an exit code by it, and an end. tests/integration/test_readme.py has a mesh."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from nearmesh.cli.main import main
from nearmesh.devmesh.visitor import Row


@pytest.mark.parametrize(("correct", "code"), [((True, True), 0), ((True, False), 1)])
def test_once_shows_the_table_and_stops_the_mesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, correct: tuple[bool, ...], code: int
) -> None:
    done: list[str] = []

    @asynccontextmanager
    async def mesh(folder: Path, say: Any, *, vectors: bool) -> AsyncIterator[Any]:
        done.append(f"up {folder}")
        yield SimpleNamespace(plan=SimpleNamespace(folder=folder))
        done.append("down")

    async def tour(folder: Path) -> list[Row]:
        done.append(f"asked {folder}")
        return [Row(region="r", way="sdk", model="m", correct=one) for one in correct]

    monkeypatch.setattr("nearmesh.devmesh.needs.check_needs", lambda modules: None)
    monkeypatch.setattr("nearmesh.devmesh.mesh.local_mesh", mesh)
    monkeypatch.setattr("nearmesh.devmesh.tour.tour", tour)
    found = CliRunner().invoke(main, ["dev", "up", "--once", "--json", "--folder", str(tmp_path)])
    assert found.exit_code == code, found.output
    assert done == [f"up {tmp_path}", f"asked {tmp_path}", "down"]
    assert tuple(row["correct"] for row in json.loads(found.stdout)) == correct
    assert f"{sum(correct)} of {len(correct)} rows right" in found.stderr
