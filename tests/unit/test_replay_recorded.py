"""The replay twin on the recorded data: two hours of a day in which the bars hold. Skipped where data are missing."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.replay import recorded
from benchmarks.replay.contest import play_slice
from benchmarks.replay.recorded import REGIONS
from benchmarks.replay.slices import DAYS, FAULTS, HARDWARE, ILL_SHARE, LAPSE, build, ill
from nearmesh.errors import NotFound

needs_data = pytest.mark.skipif(
    recorded.VARIABLE not in os.environ, reason=f"set {recorded.VARIABLE} to the recorded data's folder"
)
SHORT = replace(DAYS[0], start_hour=12.0, hours=2.0)


def test_without_the_data_the_message_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(recorded.VARIABLE, "/nowhere")
    with pytest.raises(NotFound, match=recorded.VARIABLE):
        recorded.folder()


@needs_data
def test_round_trips_are_of_all_pairs() -> None:
    found = recorded.round_trips()
    assert (found.mean_ms > 0).all()
    assert (found.least_ms <= found.mean_ms).all()
    assert found.mean_ms.diagonal().max() < 2
    assert 7 < np.median(found.mean_ms) < 381


@needs_data
@pytest.mark.parametrize("machine_type", sorted(HARDWARE))
def test_prices_are_known_everywhere_and_change(machine_type: str) -> None:
    found = recorded.prices(machine_type, "2024-05-01", 365)
    assert found.since[0] == 0
    assert (np.diff(found.since) > 0).all()
    assert found.since[-1] < 1
    for kind in (found.on_demand, found.spot):
        assert np.isfinite(kind).all()
        assert kind.shape == (len(found.since), len(REGIONS))
    assert (found.spot < found.on_demand).all()
    assert len(found.since) > 3


@needs_data
def test_rhythms_and_textures_have_a_mean_of_one() -> None:
    textures = (recorded.smooth_texture(), recorded.bursty_texture(), recorded.web_texture())
    for values in (*recorded.taxi_days()[:3], recorded.launch_day(), *(t.texture for t in textures)):
        assert values.mean() == pytest.approx(1)
        assert (values >= 0).all()
    smooth, bursty, _ = ((t.texture * t.per_second).var() / t.per_second for t in textures)
    assert bursty > 3 * smooth


@needs_data
def test_a_slice_is_a_day_of_twenty_regions() -> None:
    there = build(SHORT)
    assert there.duration_s == 2 * 3600 / LAPSE
    assert len(there.nodes) == 2 * len(REGIONS)
    assert set(there.arrival_region.tolist()) == set(range(len(REGIONS)))
    assert len(there.arrival_s) == pytest.approx(SHORT.per_second * there.duration_s, rel=0.25)
    assert any(gone.notice_s > 0 for gone in there.absences)
    again = build(SHORT)
    assert again.arrival_s.tolist() == there.arrival_s.tolist()
    sick = ill(there, FAULTS[0], 1)
    assert len(sick.troubles) == ILL_SHARE * len(there.nodes)


@needs_data
def test_the_bars_hold_on_two_hours() -> None:
    day = play_slice((SHORT, None))
    assert [verdict for verdict in day["verdicts"] if not verdict["held"]] == []
    assert day["best"]["unplaced"] < 0.001
