"""What a run spends of its sites' privacy: against figures of others, and against the noise that is there."""

from pathlib import Path

import numpy as np
import pytest
from nearmesh_controlplane.rounds.privacy import delta_of, epsilon, noised_mean
from nearmesh_controlplane.runs.folder import Plan

from tests.round_run import PLAN, a_run, digits_sites

# Of Google's dp-accounting 0.6.0: its PLDAccountant, add-or-remove-one, a GaussianDpEvent composed so many times.
PUBLISHED = [
    # rounds, noise multiplier, delta, epsilon
    (1, 1.0, 1e-5, 4.37718),
    (10, 1.0, 1e-5, 17.85659),
    (3, 1.1, 1e-5, 7.47391),
    (100, 2.0, 1e-6, 35.56634),
    (5, 0.5, 1e-5, 28.37347),
    (10, 4.0, 1e-3, 2.35184),
]


@pytest.mark.parametrize(("rounds", "noise", "delta", "spent"), PUBLISHED)
def test_p9_epsilon_is_that_of_others(rounds: int, noise: float, delta: float, spent: float) -> None:
    assert epsilon(rounds, noise, delta) == pytest.approx(spent, rel=1e-5)


def test_p9_delta_of_one_gaussian_is_that_of_the_paper() -> None:
    # Phi(-1/2) - e Phi(-3/2), by a table of the normal distribution.
    assert delta_of(1.0, mu=1.0) == pytest.approx(0.308538 - np.e * 0.0668072, rel=1e-4)


def test_p9_epsilon_grows_with_rounds_and_falls_with_noise() -> None:
    by_rounds = [epsilon(rounds, 1.0, 1e-5) for rounds in (0, 1, 2, 10, 100, 1000)]
    assert by_rounds == sorted(by_rounds)
    assert by_rounds[0] == 0.0
    by_noise = [epsilon(10, noise, 1e-5) for noise in (0.01, 0.1, 1.0, 10.0, 1000.0)]
    assert by_noise == sorted(by_noise, reverse=True)
    assert np.isfinite(by_noise).all()
    assert epsilon(10, 0.0, 1e-5) == 0.0


def test_p9_noise_is_as_wide_as_it_is_accounted_for() -> None:
    plan = Plan(**{**PLAN, "noise_multiplier": 0.5, "clipping_norm": 3.0})
    updates = [np.zeros(200_000), np.zeros(200_000), np.full(200_000, 0.3)]
    noised = noised_mean(updates, plan, np.random.default_rng(1))
    assert noised.mean() == pytest.approx(0.1, abs=0.01)
    assert noised.std() == pytest.approx(0.5 * 3.0 / 3, rel=0.02)


def test_p9_a_private_run_clips_every_update_and_tells_epsilon(tmp_path: Path) -> None:
    run = a_run(
        tmp_path, digits_sites(4), rounds=3, noise_multiplier=1.0, clipping_norm=0.05, delta=1e-5, strategy="fedadam"
    )
    run.go()
    assert run.reason() == ""
    assert [record.epsilon for record in run.rounds()] == [epsilon(rounds, 1.0, 1e-5) for rounds in (1, 2, 3)]
    assert all(site.clipped for record in run.rounds() for site in record.sites)
    assert run.folder.rounds()[0].epsilon == 0.0


def test_p9_the_mean_takes_every_site_alike(tmp_path: Path) -> None:
    """Else one with many examples would move the mean further than the noise covers."""
    plan = {"rounds": 1, "noise_multiplier": 1e-9, "clipping_norm": 10.0}
    sites = digits_sites(2)
    sites[1].rows = sites[1].rows[:20]
    run, plain = a_run(tmp_path / "private", sites, **plan), a_run(tmp_path / "plain", sites, rounds=1)
    run.go()
    plain.go()
    alone = [a_run(tmp_path / f"alone-{at}", {at: site}, rounds=1, min_sites=1) for at, site in sites.items()]
    for one in alone:
        one.go()
    mean = np.mean([one.arrays()["weight"] for one in alone], axis=0)
    np.testing.assert_allclose(run.arrays()["weight"], mean, atol=1e-6)
    assert not np.allclose(plain.arrays()["weight"], mean, atol=1e-3)


def test_p9_noise_is_drawn_once_for_a_round(tmp_path: Path) -> None:
    """A round that dies in its evaluation has shown the sites its model: another draw would cost a release more."""
    run = a_run(tmp_path, digits_sites(2), rounds=1, noise_multiplier=1.0, clipping_norm=1.0)
    evaluating = run.grid.sites[1]

    def dies(message):
        if message.metadata.message_type == "evaluate" and message.metadata.group_id == "1":
            raise KeyboardInterrupt
        return evaluating(message)

    run.grid.sites[1] = dies
    with pytest.raises(KeyboardInterrupt):
        run.go()
    shown = run.folder.arrays(1)
    run.grid.sites[1] = evaluating
    run.go()
    np.testing.assert_array_equal(run.arrays()["weight"], shown["weight"])
