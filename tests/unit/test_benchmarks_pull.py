"""What the benchmark of pulls makes of its runs."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.pull.__main__ import page
from benchmarks.pull.wan import CONNECTIONS, Settings, judged

SETTINGS = Settings(size_bytes=2**30, rounds=2)


def run(seconds: float, times_the_size: float = 1.001) -> dict[str, Any]:
    return {"seconds": seconds, "cpu_s": 1.0, "crossed_bytes": int(times_the_size * SETTINGS.size_bytes), "cuts": 0}


def runs() -> dict[str, list[dict[str, Any]]]:
    """The second round met a slower machine."""
    return {
        "one stream": [run(40.0), run(80.0)],
        f"bare, {CONNECTIONS[0]} connections": [run(9.0), run(20.0)],
        f"bare, {CONNECTIONS[1]} connections": [run(10.0), run(18.0)],
        "the store": [run(10.0), run(20.0)],
        "the store, cut ten times": [run(15.0, 1.02)],
        "three nodes of a site": [run(14.0, 1.05)],
    }


def test_ways_are_compared_within_a_round_and_with_the_better_bare_reader() -> None:
    found = judged(runs(), SETTINGS)
    assert found["of_bare"] == pytest.approx(0.9)
    assert found["times_one_stream"] == pytest.approx(4.0)
    assert found["cut_crossed"] == pytest.approx(1.02, abs=1e-6)
    assert found["three_crossed"] == pytest.approx(1.05, abs=1e-6)


def test_the_page_says_what_was_measured_and_on_what() -> None:
    shown = {key: getattr(SETTINGS, key) for key in ("size_bytes", "rounds", "round_trip_ms", "mbit_s", "window_bytes")}
    found = {
        "taken": {"at": "2030-01-02", "commit": "0123456789abcdef", "uncommitted_changes": False, "duration_s": 1.0},
        "machine": {"cores": 2, "cpu": "Some CPU", "load_before": 0.1},
        "settings": shown,
        "runs": runs(),
        **judged(runs(), SETTINGS),
    }
    text = page(found)
    for part in (
        "1 GiB over 1000 Mbit/s",
        "**0.90**",
        "**4.0 times**",
        "**1.020**",
        "**1.050**",
        "Some CPU",
        "| the store |",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 140
