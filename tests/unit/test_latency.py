"""What is believed about round trips: who measured them, how lately, and within what bounds."""

from __future__ import annotations

import math

import pytest
from nearmesh_controlplane.routing import latency
from nearmesh_controlplane.routing.coordinates import Coordinates
from nearmesh_controlplane.routing.latency import (
    CLIENTS_FACTOR,
    HALF_LIFE_S,
    LAST_MILE_MS,
    PRIOR_P95_FACTOR,
    LatencyBook,
    NetworkTime,
    Reporter,
)
from nearmesh_controlplane.routing.voices import Bounds

from nearmesh.errors import InvalidInput
from nearmesh.regions import PRIOR_UNKNOWN_MS, light_ms, prior_round_trip_ms
from nearmesh.sketch import ACCURACY

HERE, THERE, ASIA = "europe-west1", "us-east1", "asia-northeast1"
PRIOR = prior_round_trip_ms(HERE, THERE)
FRESH_S = HALF_LIFE_S["gateway"]


def report(
    book: LatencyBook, *samples: float, kind: Reporter = "gateway", by: str = "r", now_s: float = 0.0, node: str = "n"
) -> None:
    book.report(HERE, node, samples, kind=kind, reporter=by, now_s=now_s)


def estimate(book: LatencyBook, now_s: float = 0.0, node: str = "n") -> NetworkTime:
    return book.estimate(HERE, node, THERE, now_s=now_s)


def median(book: LatencyBook, now_s: float = 0.0) -> float:
    return estimate(book, now_s).p50_ms


def infer(book: LatencyBook, now_s: float = 0.0) -> None:
    book.infer_by(Coordinates(book.between_regions({"n": THERE}, now_s=now_s)))


def close(ms: float) -> object:
    return pytest.approx(ms, rel=ACCURACY)


def test_before_anyone_measured_the_distance_speaks() -> None:
    found = estimate(LatencyBook())
    assert (found.source, found.measured, found.p50_ms) == ("distance", False, pytest.approx(PRIOR))
    assert found.p95_ms == pytest.approx(PRIOR * PRIOR_P95_FACTOR)


def test_each_source_speaks_where_those_before_it_are_silent() -> None:
    book = LatencyBook()
    for kind, ms in (("nodes", 100.0), ("clients", 110.0), ("gateway", 95.0)):
        report(book, *[ms] * 3, kind=kind)  # type: ignore[arg-type]
        found = estimate(book)
        assert (found.source, found.measured, found.p50_ms) == (kind, True, close(ms))
    # Whoever spoke last.
    report(book, *[110.0] * 9, kind="clients")
    assert estimate(book).source == "gateway"


def test_one_stray_among_few_samples_is_neither_the_median_nor_the_tail() -> None:
    """As after a restart of the control plane, when machines are busy and nothing is remembered."""
    book = LatencyBook()
    for stray in (900.0, 93.0):
        report(book, stray)
        assert estimate(book).source == "distance"
    report(book, 94.0)
    assert (estimate(book).source, estimate(book).p95_ms) == ("gateway", close(94.0))


def test_a_measurement_that_is_not_renewed_fades_to_what_is_believed_without_it() -> None:
    book = LatencyBook()
    report(book, *[50.0] * 20)
    assert median(book, FRESH_S) == close(50.0)
    medians = [median(book, at * FRESH_S) for at in range(1, 14)]
    assert medians == sorted(medians) and medians[-1] == pytest.approx(PRIOR)
    # In between it is neither full nor empty, and the less certain the older it is.
    spreads = [estimate(book, at * FRESH_S).p95_ms / medians[at - 1] for at in range(1, 14)]
    assert spreads == sorted(spreads) and spreads[-1] == pytest.approx(PRIOR_P95_FACTOR)
    assert estimate(book, 2 * FRESH_S).measured and not estimate(book, 3 * FRESH_S).measured


def test_a_silent_gateway_fades_to_its_regions_clients() -> None:
    book = LatencyBook()
    report(book, *[90.0] * 20)
    for client in "abc":
        report(book, *[120.0] * 9, kind="clients", by=client, now_s=12 * FRESH_S)
    found = estimate(book, 12 * FRESH_S)
    assert (found.source, found.p50_ms) == ("clients", close(120.0))


def test_pairs_do_not_mix() -> None:
    book = LatencyBook()
    report(book, *[95.0] * 3, node="a")
    assert estimate(book, node="a").measured
    assert not estimate(book, node="b").measured
    assert not book.estimate(ASIA, "a", THERE, now_s=0).measured


# Clients that lie.


@pytest.mark.parametrize("claim", [0.0, 1.0, 30.0])
def test_a_client_cannot_make_a_node_nearer_than_light_allows(claim: float) -> None:
    book = LatencyBook()
    for client in range(9):
        report(book, *[claim] * 20, kind="clients", by=f"liar-{client}")
    assert estimate(book).times.ms[0] >= light_ms(HERE, THERE) > 60


@pytest.mark.parametrize("clients", [1, 2])
def test_few_clients_cannot_make_a_node_farther_than_a_bad_way_could_be(clients: int) -> None:
    book = LatencyBook()
    for client in range(clients):
        report(book, *[59_000.0] * 200, kind="clients", by=f"liar-{client}")
    assert estimate(book).p50_ms == pytest.approx(CLIENTS_FACTOR * PRIOR * PRIOR_P95_FACTOR + LAST_MILE_MS)


@pytest.mark.parametrize("claim", [0.0, 59_000.0])
@pytest.mark.parametrize(("honest", "liars"), [(2, 1), (3, 2), (9, 8)])
def test_a_minority_of_clients_moves_nothing_beyond_what_the_others_measured(
    honest: int, liars: int, claim: float
) -> None:
    book = LatencyBook()
    measured = [100.0 + 3 * number for number in range(honest)]
    for number, ms in enumerate(measured):
        report(book, *[ms] * 5, kind="clients", by=f"honest-{number}")
    for number in range(liars):
        # However much they talk.
        for second in range(20):
            report(book, *[claim] * 200, kind="clients", by=f"liar-{number}", now_s=float(second))
    found = estimate(book, 20.0)
    for ms in found.times.ms:
        assert min(measured) * (1 - ACCURACY) <= ms <= max(measured) * (1 + ACCURACY)


def test_a_client_moves_no_pair_but_that_of_its_region() -> None:
    book = LatencyBook()
    for client in "abc":
        report(book, *[59_000.0] * 9, kind="clients", by=client)
    infer(book)
    assert not book.estimate(ASIA, "n", THERE, now_s=0).measured
    assert book.estimate("europe-west4", "n", THERE, now_s=0).source == "distance"


# Pairs that nobody measured, inferred.


def test_what_gateways_and_nodes_measured_lets_infer_the_pairs_beside_them() -> None:
    book = LatencyBook()
    # London to New York's side is twice as slow as the distance says; so it will be from Belgium.
    for kind in ("gateway", "nodes"):
        book.report("europe-west2", "n", [2 * PRIOR] * 9, kind=kind, reporter="r", now_s=0.0)  # type: ignore[arg-type]
    infer(book)
    found = estimate(book, node="other")
    assert (found.source, found.measured) == ("coordinates", False)
    assert 1.5 * PRIOR < found.p50_ms < 2.2 * PRIOR
    assert found.p95_ms < found.p50_ms * PRIOR_P95_FACTOR
    # What it was learned from has gone silent.
    infer(book, 3600.0)
    assert estimate(book, 3600.0).source == "distance"


# Bounds.


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
        book.report("Nowhere!", "n", [1.0], kind="clients", reporter="r", now_s=0)


def test_an_empty_report_is_none() -> None:
    book = LatencyBook()
    report(book)
    assert not estimate(book).measured


def test_no_client_pushes_out_a_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Bounds(voices=3, voices_of_pair=3, voices_of_reporter=3, buckets=8)
    monkeypatch.setattr(latency, "BOUNDS", dict.fromkeys(latency.BOUNDS, few))
    book = LatencyBook()
    report(book, *[90.0] * 3)
    for number in range(10):
        report(book, *[100.0] * 3, node=f"n{number}", kind="clients", by=f"c{number}")
    assert [number for number in range(10) if estimate(book, node=f"n{number}").measured] == [7, 8, 9]
    assert estimate(book).source == "gateway"


def test_regions_that_clients_make_up_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MAX_INFERRED", 5)
    book = LatencyBook()
    for number in range(50):
        assert book.estimate(f"region-{number}", "n", THERE, now_s=0).p50_ms == pytest.approx(PRIOR_UNKNOWN_MS)
        assert len(book._inferred) <= 5
