"""One voice for each reporter, the median of the voices, and bounds on how many there are."""

from __future__ import annotations

import random

import pytest
from nearmesh_controlplane.routing.voices import Bounds, Voices, median

HALF_LIFE_S = 30.0
PAIR = ("europe-west1", "n")


def voices(voices: int = 100, pair: int = 100, reporter: int = 100, buckets: int = 64) -> Voices:
    bounds = Bounds(voices=voices, voices_of_pair=pair, voices_of_reporter=reporter, buckets=buckets)
    return Voices(bounds, half_life_s=HALF_LIFE_S)


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        ([7], [0.1], 7),
        ([1, 9], [1, 1], 5),
        ([1, 9], [1, 0.9], 1),
        ([9, 1, 2], [1, 1, 1], 2),
        ([1, 2, 3, 100], [1, 1, 1, 1], 2.5),
        ([1, 2, 100], [1, 1, 2.5], 100),
        ([1, 100], [0.3, 0.3], 50.5),
    ],
)
def test_the_weighted_median(values: list[float], weights: list[float], expected: float) -> None:
    assert median(values, weights) == expected


@pytest.mark.parametrize("seed", range(20))
def test_a_minority_stays_within_the_others(seed: int) -> None:
    chance = random.Random(seed)
    honest = [chance.uniform(50, 60) for _ in range(chance.randint(2, 9))]
    liars = [chance.choice([0.0, 1e4]) for _ in range(len(honest) - 1)]
    assert 50 <= median(honest + liars, [1.0] * (2 * len(honest) - 1)) <= 60


def test_who_talks_more_has_no_more_weight() -> None:
    book = voices()
    for by, ms, count in (("a", 10.0, 3), ("b", 11.0, 3), ("loud", 500.0, 3000)):
        book.add(PAIR, by, [ms] * count, now_s=0.0)
    heard = book.heard(PAIR, now_s=0.0)
    assert heard is not None and heard.voices == 3
    assert heard.times.p50_ms == heard.times.p99_ms == pytest.approx(11.0, rel=0.01)


def test_a_voice_that_grew_old_counts_for_less() -> None:
    book = voices()
    for by in "ab":
        book.add(PAIR, by, [500.0] * 5, now_s=0.0)
    book.add(PAIR, "c", [10.0] * 5, now_s=4 * HALF_LIFE_S)
    heard = book.heard(PAIR, now_s=4 * HALF_LIFE_S)
    assert heard is not None and heard.trust == 1
    assert heard.times.p50_ms == pytest.approx(10.0, rel=0.01)
    assert book.heard(PAIR, now_s=100 * HALF_LIFE_S) is None


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [({"voices": 3}, {"p7", "p8", "p9"}), ({"reporter": 2}, {"p8", "p9"})],
    ids=["altogether", "of one reporter"],
)
def test_the_pairs_that_were_silent_longest_give_way(bounds: dict[str, int], kept: set[str]) -> None:
    book = voices(**bounds)
    for number in range(10):
        book.add(("r", f"p{number}"), "same", [1.0] * 3, now_s=0.0)
    assert {node for _, node in book.pairs()} == kept
    assert len(book) == len(kept)


def test_the_reporters_of_a_pair_are_bounded_and_who_is_busy_stays() -> None:
    book = voices(pair=3)
    for number in range(10):
        book.add(PAIR, f"r{number}", [1.0] * 3, now_s=0.0)
        book.add(PAIR, "busy", [1.0] * 3, now_s=0.0)
    heard = book.heard(PAIR, now_s=0.0)
    assert heard is not None and heard.voices == 3
    assert set(book._pairs[PAIR]) == {"busy", "r8", "r9"}


def test_one_reporter_pushes_out_its_own_and_no_others() -> None:
    book = voices(voices=1000, reporter=5)
    book.add(PAIR, "honest", [10.0] * 3, now_s=0.0)
    for number in range(5000):
        book.add((f"region-{number}", "n"), "flooder", [1.0] * 3, now_s=1.0)
    assert book.heard(PAIR, now_s=1.0) is not None
    assert len(book) == 6


@pytest.mark.parametrize("seed", range(3))
def test_books_agree_whatever_comes(seed: int) -> None:
    chance = random.Random(seed)
    book = voices(voices=20, pair=4, reporter=6)
    for now_s in range(2000):
        pair = (f"r{chance.randrange(5)}", f"n{chance.randrange(5)}")
        book.add(pair, f"by{chance.randrange(8)}", [1.0], now_s=float(now_s))
        assert len(book) == sum(map(len, book._pairs.values())) == sum(map(len, book._reporters.values())) <= 20
        assert all(0 < len(of) <= 4 for of in book._pairs.values())
        assert all(0 < len(of) <= 6 for of in book._reporters.values())
