"""Round trips that nobody has measured, inferred; and the measured ones of a real cloud, if they are at hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from nearmesh_controlplane.routing.coordinates import MAX_PAIRS, Coordinates, prior_ms

from benchmarks import coordinates as benchmark
from benchmarks.probing import MAX_PROBES, best_site, next_probe
from nearmesh.regions import COORDINATES, prior_round_trip_ms

LONDON, MONS, NEW_YORK, TOKYO, SYDNEY = (51.5, -0.1), (50.4, 3.8), (40.7, -74.0), (35.7, 139.7), (-33.9, 151.2)
PLACES = [LONDON, MONS, NEW_YORK, TOKYO, SYDNEY]


def test_with_nothing_measured_the_distance_speaks_with_its_uncertainty() -> None:
    coordinates = Coordinates({})
    assert coordinates.known == 0
    for a, b in itertools.combinations(PLACES[1:], 2):
        guess = coordinates.guess(a, b)
        assert guess.median_ms == pytest.approx(prior_ms(a, b))
        assert 0.4 < guess.spread < 1.0
    assert prior_ms(LONDON, LONDON) < 2


def test_the_prior_is_the_librarys() -> None:
    for a, b in itertools.combinations(COORDINATES, 2):
        assert prior_ms(COORDINATES[a], COORDINATES[b]) == pytest.approx(prior_round_trip_ms(a, b))


def test_a_measured_pair_is_itself_from_both_ends() -> None:
    measured = {(LONDON, NEW_YORK): 75.0, (TOKYO, SYDNEY): 300.0}
    coordinates = Coordinates(measured)
    for (a, b), ms in measured.items():
        for guess in (coordinates.guess(a, b), coordinates.guess(b, a)):
            assert guess.median_ms == pytest.approx(ms, rel=0.03)
            assert guess.spread < 0.06


def test_what_is_near_a_measured_pair_is_like_it_and_what_is_far_stays_uncertain() -> None:
    before, after = Coordinates({}), Coordinates({(LONDON, NEW_YORK): 240.0})
    near, far = after.guess(MONS, NEW_YORK), after.guess(TOKYO, SYDNEY)
    assert 190 < near.median_ms < 260 and near.spread < before.guess(MONS, NEW_YORK).spread / 2
    assert far.spread > 0.7 * before.guess(TOKYO, SYDNEY).spread


def test_what_teaches_nothing_is_left_out_and_there_is_a_limit() -> None:
    assert Coordinates({(LONDON, LONDON): 0.3, (LONDON, TOKYO): 0.0}).known == 0
    many = {((0.0, float(a)), (1.0 + a % 60, float(b))): 100.0 for a in range(-60, 60) for b in range(100, 110)}
    assert Coordinates(many).known == MAX_PAIRS


def test_probes_go_where_the_best_may_be_and_end() -> None:
    means = np.log([30.0, 35.0, 36.0, 300.0, 310.0, 320.0, 330.0])
    covariance = np.diag([0.01, 0.01, 0.2, 0.01, 0.01, 0.01, 0.01])
    assert next_probe(means, covariance, {}) == 0
    # The uncertain one may be the best; the certain ones far behind may not.
    assert next_probe(means, covariance, {0: 31.0}) == 2
    probed = {0: 31.0, 2: 60.0}
    assert next_probe(means, covariance, probed) == 1
    probed[1] = 29.0
    assert best_site(means, covariance, probed) == 1
    for site in (3, 4):
        probed[site] = 300.0
    assert len(probed) == MAX_PROBES and next_probe(means, covariance, probed) is None


def test_one_site_needs_one_probe() -> None:
    means, covariance = np.log([30.0]), np.array([[0.1]])
    assert next_probe(means, covariance, {}) == 0
    assert next_probe(means, covariance, {0: 30.0}) is None
    assert best_site(means, covariance, {0: 30.0}) == 0


def test_a_probe_of_one_site_teaches_about_those_beside_it() -> None:
    coordinates = Coordinates({(LONDON, NEW_YORK): 75.0, (MONS, NEW_YORK): 80.0})
    means, covariance = coordinates.joint(SYDNEY, [LONDON, MONS, TOKYO])
    assert best_site(means, covariance, {}) == 2
    # Europe turns out to be quicker than it was thought; which of its cities, the second one tells.
    assert best_site(means, covariance, {0: 120.0, 2: 200.0}) in (0, 1)
    assert best_site(means, covariance, {0: 120.0, 1: 110.0, 2: 200.0}) == 1


def test_all_it_gives_is_finite_and_a_covariance() -> None:
    places = list(COORDINATES.values())
    measured = {pair: 2 * prior_ms(*pair) for pair in itertools.combinations(places[:12], 2)}
    means, covariance = Coordinates(measured).joint(places[15], places)
    assert all(math.isfinite(mean) for mean in means)
    assert np.linalg.eigvalsh(covariance).min() > -1e-6


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_the_nearest_site_of_a_real_cloud_is_found(missing: float) -> None:
    """The bars: 1.05 times the best from at most 5 probes, 1.25 times from coordinates alone."""
    matrix = benchmark.read_matrix(benchmark.data_folder())
    if matrix is None:
        pytest.skip("no measured round trips of regions; set NEARMESH_TEST_DATA to the folder that has gcp_region_rtt/")
    found = benchmark.left_out(matrix, missing=missing, seeds=3 if missing else 1)
    for variant in found:
        assert variant.probed.worst <= 1.05, variant
        assert variant.probes_most <= MAX_PROBES
        # With half of the other pairs unknown as well, what no probe tells now and then cannot be known.
        alone = variant.alone.p95 if missing else variant.alone.worst
        assert alone <= 1.25, variant
