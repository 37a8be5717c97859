"""How many requests come from where: totals are the nodes', shares are claimed, and nobody invents demand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from nearmesh_controlplane.routing import demand
from nearmesh_controlplane.routing.demand import HALF_LIFE_S, MAX_CALLS, Calls, Claimant, DemandBook, Key, Rate

from nearmesh.errors import InvalidInput

HERE, THERE = "europe-west1", "us-east1"


def claim(
    book: DemandBook,
    count: int,
    *,
    region: str = HERE,
    model: str = "m",
    objective: str = "",
    kind: Claimant = "clients",
    by: str = "app",
    now_s: float,
) -> None:
    book.report(region, [Calls(model, objective, count)], kind=kind, reporter=by, now_s=now_s)


def run(book: DemandBook, seconds: int, served: int, claims: dict[tuple[str, Claimant], int], start: int = 1) -> float:
    """So many seconds in which one node serves `served` a second, and regions claim what they claim."""
    for now_s in range(start, start + seconds):
        book.answered("node", {"sha256:1": ("m", 1000 + served * now_s)}, now_s=float(now_s))
        for (region, kind), count in claims.items():
            claim(book, count, region=region, kind=kind, by=f"{kind}-{region}", now_s=float(now_s))
    return float(start + seconds - 1)


def mean(book: DemandBook, now_s: float) -> dict[Key, float]:
    return book.demand(now_s, forecast=False)


def unclaimed(book: DemandBook, now_s: float) -> dict[str, float]:
    """Requests per second by model that nobody but the nodes told of."""
    found = {model: book.total(model, now_s=now_s) for model in book._totals}
    for (_, model, _), per_s in book.demand(now_s, forecast=False).items():
        found[model] -= per_s
    return found


@pytest.mark.parametrize("per_s", [1, 20, 500])
def test_a_steady_stream_is_known_at_once_and_stays(per_s: int) -> None:
    rate = Rate(0.0)
    for now_s in range(1, 100):
        rate.add(per_s, now_s=float(now_s))
        assert rate.per_s(float(now_s)) == pytest.approx(per_s)
        assert rate.variance(float(now_s)) == pytest.approx(0)


def test_a_change_is_known_by_half_after_a_half_life_and_silence_forgets() -> None:
    rate = Rate(0.0)
    for now_s in range(1, 301):
        rate.add(10, now_s=float(now_s))
    for now_s in range(301, 301 + int(HALF_LIFE_S)):
        rate.add(30, now_s=float(now_s))
    now_s = 300 + HALF_LIFE_S
    assert rate.per_s(now_s) == pytest.approx(20, rel=0.01)
    # A report or two may be late.
    assert rate.per_s(now_s + 2) == rate.per_s(now_s)
    assert rate.per_s(now_s + 2 + HALF_LIFE_S) == pytest.approx(10, rel=0.01)


def test_how_often_somebody_reports_changes_nothing() -> None:
    often, seldom = Rate(0.0), Rate(0.0)
    for tenth in range(1, 1001):
        often.add(3, now_s=tenth / 10)
        if tenth % 50 == 0:
            seldom.add(150, now_s=tenth / 10)
    assert often.per_s(100.0) == pytest.approx(30, rel=0.02)
    assert seldom.per_s(100.0) == pytest.approx(30, rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_single_seconds_stay_below_the_forecast_six_times_of_ten(seed: int) -> None:
    chance = random.Random(seed)
    book, total, below, seen = DemandBook(), 0, 0, 0
    for now_s in range(1, 1500):
        count = sum(chance.random() < 0.1 for _ in range(300))
        if now_s > 100:
            seen += 1
            below += count <= book.demand(now_s - 1.0)[HERE, "m", ""]
        total += count
        book.answered("node", {"d": ("m", total)}, now_s=float(now_s))
        claim(book, count, now_s=float(now_s))
    assert 0.5 < below / seen < 0.7


def test_what_is_claimed_is_a_share_of_what_the_nodes_counted() -> None:
    """A client that claims a thousand times what it sent invents nothing, and takes nothing from gateways."""
    book = DemandBook()
    now_s = run(book, 60, 100, {(HERE, "gateway"): 60, (THERE, "clients"): 40_000, (HERE, "clients"): 20})
    found = mean(book, now_s)
    assert sum(found.values()) == pytest.approx(100, rel=0.01)
    assert found[HERE, "m", ""] >= 60
    assert found[THERE, "m", ""] <= 40
    assert sum(unclaimed(book, now_s).values()) == pytest.approx(0, abs=0.5)


def test_without_any_answer_there_is_no_demand() -> None:
    book = DemandBook()
    claim(book, 1000, now_s=1.0)
    assert book.demand(1.0) == {} and book.total("m", now_s=1.0) == 0


def test_honest_claims_stand_as_they_are_and_the_rest_is_unclaimed() -> None:
    book = DemandBook()
    now_s = run(book, 60, 100, {(HERE, "gateway"): 30, (THERE, "clients"): 20})
    assert mean(book, now_s) == {(HERE, "m", ""): pytest.approx(30), (THERE, "m", ""): pytest.approx(20)}
    # Of its first report no more is known than that it was made.
    assert unclaimed(book, now_s) == {"m": pytest.approx(50, rel=0.02)}


def test_objectives_are_kept_apart() -> None:
    book = DemandBook()
    for now_s in range(1, 30):
        book.answered("node", {"d": ("m", 50 * now_s)}, now_s=float(now_s))
        calls = [Calls("m", "", 30), Calls("m", "nearest", 10)]
        book.report(HERE, calls, kind="gateway", reporter="g", now_s=float(now_s))
    assert mean(book, 29.0) == {(HERE, "m", ""): pytest.approx(30), (HERE, "m", "nearest"): pytest.approx(10)}


def test_a_node_that_is_new_here_has_a_past_and_one_that_started_again_has_none() -> None:
    book = DemandBook()
    book.answered("old", {"d": ("m", 1_000_000)}, now_s=0.0)
    assert book.total("m", now_s=0.0) == 0
    for now_s in range(1, 5):
        book.answered("old", {"d": ("m", 1_000_000 + 10 * now_s)}, now_s=float(now_s))
    assert book.total("m", now_s=4.0) == pytest.approx(10, rel=0.25)
    # It restarted and has answered ten since; then it loaded a second version of the model.
    book.answered("old", {"d": ("m", 10)}, now_s=5.0)
    book.answered("old", {"d": ("m", 15), "e": ("m", 5)}, now_s=6.0)
    assert book.total("m", now_s=6.0) == pytest.approx(10, rel=0.25)


def test_a_node_that_was_cut_off_does_not_bring_its_past_into_one_second() -> None:
    book = DemandBook()
    for now_s in range(1, 200):
        book.answered("there", {"d": ("m", 50 * now_s)}, now_s=float(now_s))
        if not 60 <= now_s < 180:
            book.answered("cut off", {"d": ("m", 50 * now_s)}, now_s=now_s + 0.3)
        book.report(HERE, [Calls("m", "", 100)], kind="gateway", reporter="g", now_s=now_s + 0.5)
        assert book.total("m", now_s=now_s + 0.5) < 120
        assert sum(book.demand(now_s + 0.5).values()) < 150


def test_who_leads_again_begins_anew() -> None:
    book = DemandBook()
    run(book, 30, 100, {(HERE, "gateway"): 100})
    back_s = 4000.0
    for second in range(10):
        for number, node in enumerate(("node", "other")):
            at_s = back_s + second + number / 10
            book.answered(node, {"d": ("m", 1_000_000 + 50 * second)}, now_s=at_s)
        book.report(HERE, [Calls("m", "", 100)], kind="gateway", reporter="g", now_s=back_s + second + 0.5)
    assert mean(book, back_s + 9.6) == {(HERE, "m", ""): pytest.approx(100, rel=0.15)}
    assert sum(book.demand(back_s + 9.6).values()) < 200


def test_a_count_without_bounds_is_bounded() -> None:
    book = DemandBook()
    for now_s in range(1, 10):
        book.answered("liar", {"d": ("m", now_s * 2**60)}, now_s=float(now_s))
    assert book.total("m", now_s=10.0) <= 1_000_000


def test_what_stopped_is_forgotten() -> None:
    book = DemandBook()
    now_s = run(book, 30, 100, {(HERE, "gateway"): 100})
    assert book.demand(now_s + 100 * HALF_LIFE_S) == {}
    book.forget(nodes=[], models=[])
    assert book.demand(now_s) == {} and unclaimed(book, now_s) == {}


# Bounds.


@pytest.mark.parametrize("count", [-1, MAX_CALLS + 1])
def test_an_impossible_count_is_refused(count: int) -> None:
    with pytest.raises(InvalidInput, match="calls of 'm'"):
        claim(DemandBook(), count, now_s=1.0)
    with pytest.raises(InvalidInput, match="region"):
        claim(DemandBook(), 1, region="No where", now_s=1.0)


def test_keys_are_bounded_and_no_client_pushes_out_a_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "MAX_KEYS", 5)
    monkeypatch.setattr(demand, "MAX_REPORTERS", 5)
    book = DemandBook()
    book.answered("node", {"d": ("m", 0)}, now_s=0.0)
    book.answered("node", {"d": ("m", 1000)}, now_s=1.0)
    claim(book, 10, kind="gateway", by="door", now_s=1.0)
    for number in range(50):
        claim(book, 1, region=f"r{number}", by=f"client-{number}", now_s=1.0)
    assert len(book.demand(1.0)) == 6 and (HERE, "m", "") in book.demand(1.0)
    assert len(book._regions) == 5


def test_a_client_that_makes_up_regions_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "MAX_REGIONS_OF_REPORTER", 3)
    book = DemandBook()
    for number in range(3):
        claim(book, 1, region=f"r{number}", now_s=1.0)
    with pytest.raises(InvalidInput, match="more than 3 regions"):
        claim(book, 1, region="r3", now_s=1.0)
    claim(book, 1, region="r1", now_s=1.0)
    claim(book, 1, region="r3", by="other", now_s=1.0)
    # Those of long ago are forgiven.
    claim(book, 1, region="r3", now_s=1.0 + 20 * HALF_LIFE_S)


# What the next second is expected to bring.


def unrest(book: DemandBook, key: Key, now_s: float) -> float:
    """The standard deviation of single seconds that the forecast goes by."""
    return (book.demand(now_s)[key] - mean(book, now_s)[key]) / demand._Z60


def true_unrest(counts: list[int]) -> float:
    return float(np.std(counts[-200:]))


@pytest.mark.parametrize("seed", range(3))
def test_a_quiet_region_is_not_made_restless_by_another_one(seed: int) -> None:
    """One app comes and goes by the hundreds; what a small region asks is as steady as ever."""
    chance = np.random.default_rng(seed)
    book, total = DemandBook(), 0
    for now_s in range(1, 300):
        restless, quiet = int(chance.poisson(20 + 180 * (now_s % 7 == 0))), int(chance.poisson(2))
        total += restless + quiet
        book.answered("node", {"d": ("m", total)}, now_s=float(now_s))
        claim(book, restless, kind="gateway", by="a", now_s=float(now_s))
        claim(book, quiet, region=THERE, kind="gateway", by="b", now_s=float(now_s))
    assert unrest(book, (THERE, "m", ""), 299.0) < 2.5, "1.4 is right; a share of the whole unrest is 13"
    assert unrest(book, (HERE, "m", ""), 299.0) > 50


@pytest.mark.parametrize("seed", range(3))
def test_what_all_regions_have_in_common_is_shared_like_a_thinned_stream(seed: int) -> None:
    chance = np.random.default_rng(seed)
    book, total, counts = DemandBook(), 0, []
    for now_s in range(1, 400):
        # All ask twice as much at one time as at another, and each request comes from one region in ten.
        count = int(chance.poisson(150 if now_s % 4 < 2 else 50))
        here = int(chance.binomial(count, 0.1))
        total += count
        counts.append(here)
        book.answered("node", {"d": ("m", total)}, now_s=float(now_s))
        claim(book, here, kind="gateway", by="a", now_s=float(now_s))
        claim(book, count - here, region=THERE, kind="gateway", by="b", now_s=float(now_s))
    # 0.01 x 2,600 + 0.09 x 100, not 0.1 x 2,600.
    assert true_unrest(counts) == pytest.approx(math.sqrt(35), rel=0.25)
    assert unrest(book, (HERE, "m", ""), 399.0) == pytest.approx(true_unrest(counts), rel=0.5)


@pytest.mark.parametrize("seed", range(3))
def test_regions_that_are_restless_by_themselves_are_seen_as_that(seed: int) -> None:
    chance = np.random.default_rng(seed)
    book, total = DemandBook(), 0
    counts: dict[str, list[int]] = {f"r{number}": [] for number in range(10)}
    for now_s in range(1, 400):
        for region, found in counts.items():
            found.append(int(chance.poisson(chance.choice([2, 18]))))
            total += found[-1]
            claim(book, found[-1], region=region, kind="gateway", by=region, now_s=float(now_s))
        book.answered("node", {"d": ("m", total)}, now_s=float(now_s))
    found_all = [unrest(book, (region, "m", ""), 399.0) for region in counts]
    assert np.mean(found_all) == pytest.approx(np.mean([true_unrest(c) for c in counts.values()]), rel=0.25)


def test_reports_that_come_in_lumps_look_no_more_restless_than_the_nodes_saw() -> None:
    """Two clients that ask steadily, and report every five seconds, the second right after the first."""
    book = DemandBook()
    for now_s in range(1, 200):
        book.answered("node", {"d": ("m", 40 * now_s)}, now_s=float(now_s))
        if now_s % 5 < 2:
            claim(book, 100, by=f"app-{now_s % 5}", now_s=float(now_s))
    assert book.demand(199.0)[HERE, "m", ""] < 41
