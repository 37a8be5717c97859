"""How right predictions were: shares and ratios of what was reported, fading, and bounded."""

from __future__ import annotations

from typing import Any

import pytest
from nearmesh_controlplane.routing import accuracy
from nearmesh_controlplane.routing.accuracy import HALF_LIFE_S, Accuracy, AccuracyBook, Calls

from nearmesh.errors import InvalidInput

EUROPE, AMERICA = "europe-west1", "us-east1"


def calls(model: str = "m", objective: str = "nearest", **more: Any) -> Calls:
    """A hundred, with a forecast that was right."""
    right = {"compared": 100, "late": 1, "within_p50": 50, "within_p95": 95, "within_p99": 99}
    values = {"answered": 100, "failed": 2, **right, "total_ms": 11_000.0, "predicted_ms": 10_000.0, **more}
    return Calls(model=model, objective=objective, **values)


def only(book: AccuracyBook, now_s: float = 0.0) -> Accuracy:
    (found,) = book.accuracy(now_s)
    return found


def test_shares_of_what_was_compared() -> None:
    book = AccuracyBook()
    book.report(EUROPE, [calls()], kind="gateway", now_s=0.0)
    # Without a forecast, as by LRS: they are counted, and judge nothing.
    silent = dict.fromkeys(("compared", "late", "within_p50", "within_p95", "within_p99"), 0)
    book.report(
        EUROPE, [calls(answered=300, failed=0, total_ms=0.0, predicted_ms=0.0, **silent)], kind="gateway", now_s=0
    )
    found = only(book)
    assert (found.answered, found.failed, found.compared) == (400, 2, 100)
    assert (found.late, found.within_p50, found.within_p95, found.within_p99) == (0.01, 0.5, 0.95, 0.99)
    assert found.actual_over_predicted == pytest.approx(1.1)
    assert (found.total_answered, found.total_failed, found.total_late) == (400, 2, 1)


def test_what_had_no_forecast_is_not_held_against_one() -> None:
    book = AccuracyBook()
    half = calls(compared=50, late=10, within_p50=25, within_p95=47, within_p99=49, predicted_ms=5_000.0)
    book.report(EUROPE, [half], kind="clients", now_s=0.0)
    assert only(book).actual_over_predicted == pytest.approx(1.1)
    assert only(book).late == pytest.approx(0.1), "ten of a hundred are not ten of fifty"
    assert only(book).total_late == 10


def test_everything_fades_alike_but_the_totals() -> None:
    book = AccuracyBook()
    book.report(EUROPE, [calls()], kind="clients", now_s=0.0)
    found = only(book, HALF_LIFE_S)
    assert (found.answered, found.compared, found.within_p50) == (50, 50, 0.5)
    # What is new weighs more: half of the old hundred, all of the new.
    wrong = calls(within_p50=0, within_p95=0, within_p99=0, late=100)
    book.report(EUROPE, [wrong], kind="clients", now_s=HALF_LIFE_S)
    found = only(book, HALF_LIFE_S)
    assert found.within_p95 == pytest.approx(0.95 / 3)
    assert found.late == pytest.approx((0.5 + 100) / 150)
    assert found.total_answered == 200
    assert book.accuracy(40 * HALF_LIFE_S) == [], "forgotten"


def test_regions_models_objectives_and_reporters_are_kept_apart() -> None:
    book = AccuracyBook()
    book.report(EUROPE, [calls(), calls("n"), calls(objective="cheapest")], kind="clients", now_s=0.0)
    book.report(EUROPE, [calls()], kind="gateway", now_s=0.0)
    book.report(AMERICA, [calls()], kind="clients", now_s=0.0)
    found = [(row.model, row.region, row.objective, row.reporter) for row in book.accuracy(0.0)]
    assert found == [
        ("m", EUROPE, "cheapest", "clients"),
        ("m", EUROPE, "nearest", "clients"),
        ("m", EUROPE, "nearest", "gateway"),
        ("m", AMERICA, "nearest", "clients"),
        ("n", EUROPE, "nearest", "clients"),
    ]
    assert [row.model for row in book.accuracy(0.0, "n")] == ["n"]
    book.forget(["n"])
    assert [row.model for row in book.accuracy(0.0)] == ["n"]


def test_memory_is_bounded_and_gateways_lose_nothing_to_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "MAX_KEYS", 3)
    book = AccuracyBook()
    book.report(EUROPE, [calls()], kind="gateway", now_s=0.0)
    for number in range(5):
        book.report(f"region-{number}", [calls()], kind="clients", now_s=0.0)
        book.report("region-0", [calls()], kind="clients", now_s=0.0)
    found = [(row.region, row.reporter) for row in book.accuracy(0.0)]
    assert found == [(EUROPE, "gateway"), ("region-0", "clients"), ("region-3", "clients"), ("region-4", "clients")]


@pytest.mark.parametrize(
    "impossible",
    [
        {"compared": 101},
        {"within_p50": 96},
        {"within_p95": 100},
        {"within_p99": 101},
        {"late": 101},
        {"failed": -1},
        {"total_ms": float("nan")},
        {"total_ms": -1.0},
        {"total_ms": 1e12},
        {"predicted_ms": float("inf")},
    ],
)
def test_calls_that_cannot_be_are_refused(impossible: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="'m'"):
        calls(**impossible)
