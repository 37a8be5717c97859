"""A run in a folder with sites that are functions, and the server app's work on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nearmesh_controlplane.rounds.asking import Asking
from nearmesh_controlplane.rounds.server_app import work
from nearmesh_controlplane.runs.folder import Arrays, Plan, RoundRecord, RunFolder, SiteInfo, SiteRecord

from tests.fake_grid import FakeClock, FakeGrid, Inline, Site, flower_identity
from tests.round_sites import INITIAL, PARAMETERS, DigitsSite, Poison, accuracy, digits, part

PLAN: Mapping[str, Any] = {
    "run": "r1",
    "model": "digits",
    "rounds": 3,
    "min_sites": 2,
    "strategy": "fedavg",
    "round_timeout_s": 60.0,
    "metric": "accuracy",
    "parameters": PARAMETERS,
}


@dataclass
class ARun:
    folder: RunFolder
    clock: FakeClock
    grid: FakeGrid

    def go(self) -> None:
        """As a process of its own that knows nothing but the folder."""
        with flower_identity():
            work(self.folder, Asking(self.grid, Inline(), self.clock), self.clock)

    def reason(self) -> str:
        end = self.folder.end()
        assert end is not None
        return end.reason

    def arrays(self) -> Arrays:
        return self.folder.arrays(self.folder.rounds()[-1].number)

    def accuracy(self) -> float:
        """On all digits."""
        return accuracy(self.arrays(), np.arange(len(digits()[1])))

    def rounds(self) -> list[RoundRecord]:
        """Those that trained."""
        return self.folder.rounds()[1:]

    def of(self, node: str) -> list[SiteRecord]:
        """Its part in each round that trained."""
        return [site for record in self.rounds() for site in record.sites if site.node == node]


def a_run(path: Path, sites: Mapping[int, Site], **plan: Any) -> ARun:
    folder = RunFolder(path)
    folder.make()
    folder.write_plan(Plan(**{**PLAN, **plan}))
    folder.write_sites({id: site_info(id) for id in sites})
    folder.write_initial(INITIAL)
    clock = FakeClock()
    return ARun(folder, clock, FakeGrid(clock, dict(sites)))


def site_info(id: int) -> SiteInfo:
    return SiteInfo(node=f"node-{id}", site=f"site-{id}", region="europe-west3", pseudonym=f"pseudonym-{id}")


def digits_sites(count: int, *, last: Poison | None = None, lacks: int = 1) -> dict[int, DigitsSite]:
    """The last one sends what `last` makes."""
    return {at: DigitsSite(part(count, at, lacks), last if at == count - 1 else None) for at in range(count)}
