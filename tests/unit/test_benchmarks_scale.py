"""What the scale benchmark asks for and shows: its plan, its client's bytes, its page. No processes."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from benchmarks.scale.__main__ import FULL, sizes
from benchmarks.scale.page import page, tables
from benchmarks.scale.plan import REGIONS, Size, clusters
from benchmarks.scale.run import Change, Measured
from benchmarks.scale.state import replicas


def test_every_pair_of_region_and_model_has_streams() -> None:
    pairs = {FULL.stream(number) for number in range(FULL.streams)}
    assert len(pairs) == len(REGIONS) * FULL.models
    assert sum(FULL.concerned(number) for number in range(FULL.streams)) == 4800


@pytest.mark.parametrize(("spread", "each"), [(0, 40), (10, 10)])
def test_models_are_spread_over_sites(spread: int, each: int) -> None:
    size = Size(sites=40, models=20, spread=spread)
    counts = [sum(size.has(node, model) for node in range(1, size.sites)) for model in range(size.models)]
    # The repriced node is counted apart: it has all but the spared.
    assert all(each - 1 <= count <= each for count in counts)
    assert {replica.model for replica in replicas(size, 0)} == set(size.model_names) - size.spared


def test_sizes_grow_one_thing_at_a_time() -> None:
    found = sizes(FULL)
    assert found[0] == FULL and len(found) == len(set(found)) == 7
    assert all((size.sites == FULL.sites) or (size.streams == FULL.streams) for size in found)


def test_a_client_asks_for_the_clusters_that_a_listener_names() -> None:
    assert clusters("m") == ["m", "m/cheapest", "m/cheapest-in-time", "m/nearest"]


def measured(size: Size, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "usd_per_hour": 1.0,
        "median_s": 0.25,
        "last_s": 0.5,
        "cpu_s": 0.75,
        "cpu_settled_s": 1.0,
        "responses": 950,
        "concerned": 950,
        "responses_to_spared": 0,
        "spared": 50,
        "first_choice": 950,
        "decided_ms": (90.0,),
        "decided_cpu_ms": (80.0,),
    }
    slow = Change(**(plain | {"last_s": 1.5} | changes))
    return asdict(
        Measured(
            size=size,
            changes=(Change(**plain), slow),
            start_s=1,
            sessions_s=1,
            streams_s=1,
            idle_cpu_share=0.1,
            memory_mib=200,
            peak_memory_mib=300,
        )
    )


def results(**changes: Any) -> dict[str, Any]:
    return {
        "taken": {
            "at": "2030-01-02T03:04:05+00:00",
            "command": "python -m benchmarks.scale",
            "commit": "0123456789abcdef",
            "uncommitted_changes": True,
            "duration_s": 120.0,
        },
        "machine": {"cpu": "a processor", "cores": 2, "memory_gb": 8.0, "load_before": 0.1},
        "measured": [measured(size, **changes) for size in (FULL, replace(FULL, sites=50), replace(FULL, streams=10))],
    }


def test_the_worst_change_counts_and_growth_has_a_table_for_each() -> None:
    target, by_sites, by_streams = tables(results())
    assert target.rows[0] == ("the last stream has it after", "1.50 s", "3.00 s")
    assert [row[0] for row in by_sites.rows] == ["50", "200"]
    assert [row[0] for row in by_streams.rows] == ["10", "5,000"]
    assert by_sites.rows[0][2] == "1.00 (0.50-1.50)"


def test_a_control_plane_that_logs_no_decisions_has_no_figure_of_them() -> None:
    found = results(decided_ms=(), decided_cpu_ms=())
    for change in found["measured"][0]["changes"]:
        change["decided_ms"] = change["decided_cpu_ms"] = ()
    assert tables(found)[0].rows[3][1] == "nan ms"
    assert " - |" in page(found)


def test_the_page_says_what_was_sent_to_whom() -> None:
    text = page(results())
    assert "In 6 changes 5,700 times a stream was concerned; 5,700 responses" in text
    assert "300 times a stream was not concerned; 0 responses" in text
    assert "with uncommitted changes" in text and "a processor, 2 cores" in text
