"""A bench to run `nearmesh run` on, over a control plane that is only pretended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nearmesh.cli.place import Place
from nearmesh.v1 import run_pb2
from tests.fake_admin import Bench, FakeAdmin, local_mesh
from tests.fake_runs import FakeRuns, run, served

START = ("run", "start", "--model", "digits", "--rounds", "3")


class RunBench(Bench):
    """A command dials more than once, each time another fake; what all of them were asked is kept in `done`."""

    def __init__(self, mesh: Path) -> None:
        super().__init__(mesh)
        self.done: list[tuple[Any, ...]] = []
        self.hear(run(), served())

    def hear(self, *heard: run_pb2.Run, **more: Any) -> None:
        """From now on watching tells these, one after the other; the fake has `more` as well."""
        self._heard, self._more = list(heard), more

    def asked(self) -> run_pb2.StartRunRequest:
        """What the control plane was told to start."""
        (found,) = [done[1] for done in self.done if done[0] == "start"]
        assert isinstance(found, run_pb2.StartRunRequest)
        return found

    def _dial(self, place: Place) -> FakeAdmin:
        found = super()._dial(place)
        found.done, found.runs = self.done, FakeRuns(self.done, self._heard)
        for name, value in self._more.items():
            setattr(found.runs, name, value)
        return found


def run_bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunBench:
    """Over a local mesh in the folder, whatever mesh the environment names."""
    for name in ("NEARMESH_MESH", "NEARMESH_CONTROL_PLANE", "NEARMESH_CA", "NEARMESH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return RunBench(local_mesh(folder))
