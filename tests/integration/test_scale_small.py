"""A price that changes reaches every discovery stream that it concerns, and no other: the scale benchmark, small."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scale import run
from benchmarks.scale.plan import CHEAP_USD, Size
from benchmarks.scale.run import measure

SIZE = Size(sites=20, models=10, streams=200, connections=4)


async def test_a_price_reaches_all_whom_it_concerns_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it takes while nothing changes is the benchmark's to measure; a change of so few streams is over sooner.
    monkeypatch.setattr(run, "IDLE_S", 0.1)
    monkeypatch.setattr(run, "SETTLE_S", 1.0)
    found = await measure(tmp_path, SIZE, 2, lambda _: None)
    for change in found.changes:
        assert (change.concerned, change.spared) == (180, 20)
        # `measure` waited until each had its first; what follows it is bounded, and nothing goes astray.
        assert change.concerned <= change.responses <= 5 * change.concerned
        assert change.responses_to_spared == 0
        assert change.first_choice == (change.concerned if change.usd_per_hour == CHEAP_USD else 0)
