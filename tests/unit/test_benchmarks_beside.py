"""Windows of requests with other work and without: their order, and what they say together."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.beside.windows import rise, table, turns
from benchmarks.lines import Lines, ProcessFailed
from benchmarks.training_beside_serving import TrainingWindow, page
from benchmarks.vectors_beside_serving import SearchWindow
from benchmarks.vectors_beside_serving import page as search_page


def window(number: int, training: bool, p99_ms: float, model: str = "digits") -> TrainingWindow:
    return TrainingWindow(
        round=number,
        model=model,
        beside=training,
        calls=200,
        errors=0,
        p50_ms=p99_ms / 2,
        p95_ms=p99_ms * 0.9,
        p99_ms=p99_ms,
        examples_per_s=1000.0 if training else 0.0,
        yielded=0.2 if training else 0.0,
    )


def pairs(*rounds: tuple[float, float]) -> list[TrainingWindow]:
    """p99 without training and beside it."""
    return [
        window(number, training, ms)
        for number, (without, beside) in enumerate(rounds, 1)
        for training, ms in ((False, without), (True, beside))
    ]


def test_each_round_has_both_windows_of_each_model_side_by_side_in_an_order_by_chance() -> None:
    order = list(turns(5, ("a", "b"), 3))
    assert Counter(order) == Counter((n, model, on) for n in range(1, 6) for model in "ab" for on in (True, False))
    halves = list(zip(order[::2], order[1::2], strict=True))
    assert all(one[:2] == other[:2] and one[2] != other[2] for one, other in halves)
    assert {one[2] for one, _ in halves} == {True, False}
    assert order == list(turns(5, ("a", "b"), 3)) != list(turns(5, ("a", "b"), 4))


@pytest.mark.parametrize(
    ("rounds", "rise_ms", "share", "held"),
    [
        # One bad round does not count; a rise is each round's own.
        ([(2, 3), (2, 3), (2, 90)], 1, 0.5, True),
        # 5 ms of a quick model, a fifth of a slow one.
        ([(2, 7), (2, 7), (2, 7)], 5, 2.5, True),
        ([(2, 7.1), (2, 7.1), (2, 7.1)], 5.1, 2.55, False),
        ([(100, 120)], 20, 0.2, True),
        ([(100, 121)], 21, 0.21, False),
        ([(10, 9)], -1, -0.1, True),
    ],
)
def test_what_is_promised_is_held_by_the_larger_of_both_bounds(
    rounds: list[tuple[float, float]], rise_ms: float, share: float, held: bool
) -> None:
    found = rise(pairs(*rounds))
    assert (found.rise_ms, found.rise) == pytest.approx((rise_ms, share))
    assert found.held is held


def test_a_line_for_each_model_and_a_page() -> None:
    windows = [*pairs((2, 3), (2, 4), (3, 4)), *[window(1, on, 50, "reader") for on in (True, False)]]
    lines = table(windows, "training").rows
    assert lines[0] == (
        "digits",
        "1.00 (1.00-1.50)",
        "2.00 (1.50-2.00)",
        "2.00 (2.00-3.00)",
        "4.00 (3.00-4.00)",
        "1.00 ms (50%)",
        "yes",
    )
    assert lines[1][0] == "reader"
    settings = {"rounds": 3, "seconds": 5.0, "rate_per_s": 20.0, "cpu_share": 0.5, "seed": 1}
    results = {
        "taken": {"at": "2026-01-01", "command": "python -m it", "commit": "0" * 40},
        "machine": {"cpu": "a processor", "cores": 2, "kernel": "Linux 6", "load_before": 0.1},
        "settings": settings,
        "windows": [asdict(each) for each in windows],
    }
    text = page(results)
    assert (
        "0 of 1600 requests failed" in text and "1,000 examples a second, and stood still for 20% of the time" in text
    )
    assert "within a budget of 50% of the cores" in text
    assert "without a budget" in page({**results, "settings": {**settings, "cpu_share": 0.0}})


def test_the_page_of_searches_has_what_they_took_and_how_many_failed() -> None:
    done = {"searches": 1400, "search_errors": 1, "search_p50_ms": 1.25, "search_p99_ms": 9.0}
    windows = [
        SearchWindow(
            round=1, model="digits", beside=on, calls=240, errors=0, p50_ms=1, p95_ms=2, p99_ms=3 + 6 * on, **more
        )
        for on, more in ((False, {}), (True, done))
    ]
    settings = {"rounds": 1, "seconds": 12.0, "rate_per_s": 20.0, "searches_per_s": 100.0, "rows": 100_000, "seed": 1}
    results = {
        "taken": {"at": "2026-01-01", "command": "python -m it", "commit": "0" * 40},
        "machine": {"cpu": "a processor", "cores": 2, "kernel": "Linux 6", "load_before": 0.1},
        "settings": settings,
        "windows": [asdict(each) for each in windows],
    }
    text = search_page(results)
    assert (
        "| digits | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) | 3.00 (3.00-3.00) | 9.00 (9.00-9.00) | 6.00 ms (200%) | no |"
        in text
    )
    assert "0 of 480 requests and 1 of 1400 searches failed" in text and "a search took 1.25 ms, and 9.00 ms" in text


async def test_a_process_that_says_nothing_is_killed_and_told() -> None:
    class Silent:
        killed, returncode = False, None

        def __init__(self) -> None:
            self.stdout = asyncio.StreamReader()

        def kill(self) -> None:
            self.killed = True

    process: Any = Silent()
    with pytest.raises(ProcessFailed, match="the node has said nothing for 0 s"):
        await Lines("the node", process).hear(0.0)
    assert process.killed
