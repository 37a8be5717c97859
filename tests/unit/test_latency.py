"""What is believed about round trips: the measured, the young, the gateways', and within bounds."""

from __future__ import annotations

import math

import pytest
from nearmesh_controlplane.routing import latency
from nearmesh_controlplane.routing.latency import MAX_AGE_S, PRIOR_P95_FACTOR, LatencyBook, NetworkTime

from nearmesh.errors import InvalidInput
from nearmesh.regions import prior_round_trip_ms

HERE, THERE = "europe-west1", "us-east1"
PRIOR = prior_round_trip_ms(HERE, THERE)


def report(book: LatencyBook, *samples: float, gateway: bool = False, now_s: float = 0.0, node: str = "n") -> None:
    book.report(HERE, node, samples, from_gateway=gateway, now_s=now_s)


def estimate(book: LatencyBook, now_s: float = 0.0, node: str = "n") -> NetworkTime:
    return book.estimate(HERE, node, THERE, now_s=now_s)


def test_before_anyone_measured_the_distance_speaks() -> None:
    assert estimate(LatencyBook()) == NetworkTime(PRIOR, PRIOR * PRIOR_P95_FACTOR, False)


def test_measurements_win_over_the_distance_until_they_are_old() -> None:
    book = LatencyBook()
    report(book, *range(1, 21))
    assert estimate(book) == NetworkTime(10, 17, True)
    assert estimate(book, MAX_AGE_S).measured
    assert estimate(book, MAX_AGE_S + 1) == NetworkTime(PRIOR, PRIOR * PRIOR_P95_FACTOR, False)


def test_a_gateways_word_counts_more_than_clients_whoever_spoke_last() -> None:
    book = LatencyBook()
    report(book, *[1.0] * 3)
    report(book, *[90.0] * 3, gateway=True)
    report(book, 1.0)
    assert estimate(book) == NetworkTime(90.0, 90.0, True)
    # Once the gateway is silent, clients are heard again.
    report(book, *[2.0] * 3, now_s=MAX_AGE_S)
    assert estimate(book, MAX_AGE_S + 1) == NetworkTime(2.0, 2.0, True)


def test_one_stray_among_few_samples_is_neither_the_median_nor_the_tail() -> None:
    """As after a restart of the control plane, when machines are busy and nothing is remembered."""
    book = LatencyBook()
    for stray in (900.0, 93.0):
        report(book, stray, gateway=True)
        assert estimate(book) == NetworkTime(PRIOR, PRIOR * PRIOR_P95_FACTOR, False)
    report(book, 94.0, gateway=True)
    assert estimate(book) == NetworkTime(94.0, 94.0, True)


def test_pairs_do_not_mix() -> None:
    book = LatencyBook()
    report(book, *[5.0] * 3, node="a")
    assert estimate(book, node="a").measured
    assert not estimate(book, node="b").measured
    assert not book.estimate("asia-northeast1", "a", THERE, now_s=0).measured


@pytest.mark.parametrize("sample", [-0.1, math.nan, math.inf, 60_001.0])
def test_an_impossible_round_trip_is_refused_and_so_is_its_report(sample: float) -> None:
    book = LatencyBook()
    with pytest.raises(InvalidInput, match="round trip"):
        report(book, *[5.0] * 3, sample)
    assert not estimate(book).measured


def test_reports_are_bounded() -> None:
    book = LatencyBook()
    with pytest.raises(InvalidInput, match="257 samples"):
        report(book, *[1.0] * 257)
    with pytest.raises(InvalidInput, match="region"):
        book.report("Nowhere!", "n", [1.0], from_gateway=False, now_s=0)


def test_an_empty_report_is_none() -> None:
    book = LatencyBook()
    report(book)
    assert not estimate(book).measured


def test_pairs_are_bounded_and_no_client_pushes_out_a_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MAX_PAIRS", 3)
    book = LatencyBook()
    report(book, *[9.0] * 3, gateway=True)
    for number in range(10):
        report(book, *[1.0] * 3, node=f"n{number}")
        # Who is reported again and again stays.
        report(book, 1.0, node="busy")
    measured = [
        node for node in ["busy", *(f"n{number}" for number in range(10))] if estimate(book, node=node).measured
    ]
    assert measured == ["busy", "n8", "n9"]
    assert estimate(book) == NetworkTime(9.0, 9.0, True)
