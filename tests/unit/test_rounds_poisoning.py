"""One of four sites is malicious: what it does to a run, what robust strategies make of it, and that it is named."""

from pathlib import Path

import pytest
from nearmesh_controlplane.runs.folder import COUNTED, REFUSED

from nearmesh.strategies import STRATEGIES
from tests.round_run import ARun, a_run, digits_sites
from tests.round_sites import DigitsSite, Poison, flipped, not_numbers, part, scaled, stale

ROUNDS, STEPS = 6, 30
POISONS: dict[str, Poison] = {"scaled": scaled, "flipped": flipped, "not numbers": not_numbers, "stale": stale}
ROBUST = [name for name, one in STRATEGIES.items() if one.robust]
MALICIOUS = "node-3"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower collects garbage for every record it turns into arrays; and what is on disk is not tested here."""
    monkeypatch.setattr("gc.collect", lambda: 0)
    monkeypatch.setattr("os.fsync", lambda _file: None)


def trained(path: Path, strategy: str, poison: Poison | None, **plan: object) -> ARun:
    # Bulyan bears one in seven.
    sites = digits_sites(7 if strategy == "bulyan" else 4)
    least = len(sites) if strategy == "bulyan" else 3
    if poison:
        sites[3].poison = poison
    run = a_run(path, sites, strategy=strategy, rounds=ROUNDS, min_sites=least, settings={"steps": STEPS}, **plan)
    run.go()
    assert run.reason() == ""
    return run


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("strategy", ROBUST)
def test_a_robust_strategy_ends_as_without_the_malicious_site_and_names_it(
    tmp_path: Path, strategy: str, poison: str
) -> None:
    clean = a_run(
        tmp_path / "clean",
        {id: site for id, site in digits_sites(7 if strategy == "bulyan" else 4).items() if id != 3},
        strategy=strategy,
        strategy_options={"num-malicious-nodes": 0} if "num-malicious-nodes" in _options(strategy) else {},
        rounds=ROUNDS,
        min_sites=3,
        settings={"steps": STEPS},
    )
    clean.go()
    run = trained(tmp_path / "poisoned", strategy, POISONS[poison])
    assert run.accuracy() > clean.accuracy() - 0.02
    # In the first round what is stale is what everybody began from: no change at all.
    named = [site.suspect or site.answer == REFUSED for site in run.of(MALICIOUS)]
    assert named[1:] == [True] * (ROUNDS - 1)
    assert _accused(run) <= {MALICIOUS}


@pytest.mark.parametrize("strategy", ["fedmedian", "trimmed-mean", "multi-krum"])
@pytest.mark.parametrize("poison", POISONS)
def test_it_is_within_two_points_of_four_honest_sites(tmp_path: Path, strategy: str, poison: str) -> None:
    clean = trained(tmp_path / "clean", strategy, None)
    assert _accused(clean) == set()
    assert trained(tmp_path / "poisoned", strategy, POISONS[poison]).accuracy() > clean.accuracy() - 0.02


@pytest.mark.parametrize("poison", ["scaled", "flipped"])
def test_a_mean_bears_none_of_it_but_names_the_site(tmp_path: Path, poison: str) -> None:
    clean, run = trained(tmp_path / "clean", "fedavg", None), trained(tmp_path / "run", "fedavg", POISONS[poison])
    assert run.accuracy() < clean.accuracy() - 0.04
    assert [site.suspect for site in run.of(MALICIOUS)[1:]] == [True] * (ROUNDS - 1)
    assert _accused(run) == {MALICIOUS}


def test_without_the_refusal_one_site_could_end_any_run(tmp_path: Path) -> None:
    run = trained(tmp_path, "fedavg", not_numbers)
    assert {(site.answer, site.detail) for site in run.of(MALICIOUS)} == {
        (REFUSED, "650 of its 650 numbers are not finite")
    }
    assert run.accuracy() > 0.8


def test_what_was_there_before_is_no_answer(tmp_path: Path) -> None:
    """Neither the model of an earlier round nor what the site has sent already."""
    first: list = []

    def again(trained, _base, _number):
        first.append(trained)
        return first[0]

    for poison, said in ((stale, "stale: it is the model after round 0"), (again, "what node-3 has sent in round 1")):
        run = trained(tmp_path / poison.__name__, "fedavg", poison)
        assert [site.answer for site in run.of(MALICIOUS)] == [COUNTED] + [REFUSED] * (ROUNDS - 1)
        assert said in run.of(MALICIOUS)[1].detail
        assert run.accuracy() > 0.9


def test_who_went_against_the_others_once_stays_a_suspect(tmp_path: Path) -> None:
    def once(trained, base, number):
        return flipped(trained, base, number) if number == 2 else trained

    run = trained(tmp_path, "trimmed-mean", once)
    assert [site.suspect for site in run.of(MALICIOUS)] == [False] + [True] * (ROUNDS - 1)
    assert run.of(MALICIOUS)[-1].detail == "it went against the others in round 2; left out"
    assert _accused(run) == {MALICIOUS}


def test_an_answer_to_other_parameters_is_refused(tmp_path: Path) -> None:
    sites = {**digits_sites(4), 3: DigitsSite(part(4, 3), base="0" * 64)}
    run = a_run(tmp_path, sites, rounds=1, min_sites=3)
    run.go()
    (site,) = run.of(MALICIOUS)
    assert site.answer == REFUSED
    assert site.detail == "stale: it was trained from other parameters than those of this round"


def test_a_largest_norm_takes_the_weight_out_of_a_scaled_update(tmp_path: Path) -> None:
    honest = trained(tmp_path / "honest", "fedavg", None)
    largest = max(site.update_norm for record in honest.rounds() for site in record.sites)
    free = trained(tmp_path / "free", "fedavg", scaled)
    run = trained(tmp_path / "run", "fedavg", scaled, largest_norm=largest)
    assert run.accuracy() > free.accuracy() + 0.3
    for site in run.of(MALICIOUS):
        assert site.clipped
        # As it was sent.
        assert site.update_norm > 2 * largest
    assert not any(site.clipped for site in run.of("node-0"))


def test_too_many_examples_give_a_robust_strategy_no_weight(tmp_path: Path) -> None:
    class Boasts(DigitsSite):
        def __call__(self, message):
            reply = super().__call__(message)
            reply["metrics"]["num-examples"] = 10**9
            return reply

    def accuracy(strategy: str) -> float:
        sites = {**digits_sites(4), 3: Boasts(part(4, 3)[:8])}
        run = a_run(tmp_path / strategy, sites, strategy=strategy, rounds=ROUNDS, min_sites=3, settings={"steps": 30})
        run.go()
        return run.accuracy()

    assert accuracy("fedavg") < 0.6 < 0.85 < accuracy("trimmed-mean")


def test_more_suspects_than_a_strategy_bears_are_named_and_not_left_out(tmp_path: Path) -> None:
    sites = digits_sites(5)
    sites[3].poison = sites[4].poison = scaled
    run = a_run(tmp_path, sites, strategy="multi-krum", min_sites=5, rounds=1)
    run.go()
    assert [site.suspect for site in run.rounds()[0].sites] == [False, False, False, True, True]
    assert all(site.answer == COUNTED for site in run.rounds()[0].sites)
    # Of two, krum itself leaves one out: that is all it was told to bear.
    assert sum("left out by multi-krum" in site.detail for site in run.rounds()[0].sites) == 1


def _options(strategy: str) -> list[str]:
    return [option.name for option in STRATEGIES[strategy].options]


def _accused(run: ARun) -> set[str]:
    sites = [site for record in run.rounds() for site in record.sites]
    return {site.node for site in sites if site.suspect or site.answer == REFUSED}
