"""Distances, and the round trip that they make likely."""

from __future__ import annotations

import itertools
import math

import pytest

from nearmesh.errors import InvalidInput
from nearmesh.regions import (
    COORDINATES,
    EARTH_RADIUS_KM,
    PRIOR_SAME_REGION_MS,
    PRIOR_UNKNOWN_MS,
    great_circle_km,
    prior_round_trip_ms,
    region_near,
)

LONDON, NEW_YORK, TOKYO, SYDNEY = (51.5, -0.13), (40.71, -74.0), (35.68, 139.69), (-33.87, 151.21)


@pytest.mark.parametrize(
    ("a", "b", "km"),
    [
        (LONDON, NEW_YORK, 5570),
        (LONDON, TOKYO, 9560),
        (TOKYO, SYDNEY, 7820),
        # Across the date line, not the long way round.
        ((0.0, 179.5), (0.0, -179.5), 111),
        (LONDON, LONDON, 0),
    ],
)
def test_known_distances(a: tuple[float, float], b: tuple[float, float], km: float) -> None:
    assert great_circle_km(a, b) == pytest.approx(km, rel=0.005, abs=0.5)
    assert great_circle_km(b, a) == pytest.approx(great_circle_km(a, b))


@pytest.mark.parametrize("latitude", [0.0, 12.3, 45.0, 60.57, 89.9])
def test_the_other_end_of_the_world(latitude: float) -> None:
    for longitude in range(-180, 180, 7):
        there = (-latitude, longitude + 180.0)
        assert great_circle_km((latitude, longitude), there) == pytest.approx(math.pi * EARTH_RADIUS_KM)


@pytest.mark.parametrize(
    ("a", "b", "low_ms", "high_ms"),
    [
        # Measured between Google's regions: about 7, 85, 90, 160 and 220 ms.
        ("europe-west1", "europe-west4", 5, 40),
        ("europe-west1", "us-east4", 75, 140),
        ("europe-west1", "us-east1", 80, 150),
        ("us-east1", "asia-northeast1", 140, 230),
        ("europe-west1", "asia-northeast1", 150, 260),
    ],
)
def test_the_prior_is_about_right(a: str, b: str, low_ms: float, high_ms: float) -> None:
    assert low_ms < prior_round_trip_ms(a, b) < high_ms


def test_the_prior_orders_the_local_meshs_regions_as_they_are() -> None:
    here = "europe-west1"
    assert (
        prior_round_trip_ms(here, here)
        < prior_round_trip_ms(here, "us-east1")
        < prior_round_trip_ms(here, "asia-northeast1")
    )


def test_a_region_is_nearest_to_itself_and_an_unknown_one_is_nobodys() -> None:
    for a, b in itertools.product(COORDINATES, COORDINATES):
        expected = prior_round_trip_ms(a, b)
        assert (expected == PRIOR_SAME_REGION_MS) == (a == b)
        assert expected == prior_round_trip_ms(b, a)
        assert expected < PRIOR_UNKNOWN_MS
    assert (
        prior_round_trip_ms("moon", "europe-west1") == prior_round_trip_ms("europe-west1", "moon") == PRIOR_UNKNOWN_MS
    )
    assert prior_round_trip_ms("moon", "moon") == PRIOR_SAME_REGION_MS


@pytest.mark.parametrize(
    ("place", "region"),
    [
        (LONDON, "europe-west2"),
        (TOKYO, "asia-northeast1"),
        (SYDNEY, "australia-southeast1"),
        # The Aleutians are west of the date line and nearer to Japan than to the coast of their own country.
        ((52.0, 174.0), "asia-northeast1"),
        ((-90.0, 0.0), "australia-southeast1"),
    ],
)
def test_the_region_near_a_place(place: tuple[float, float], region: str) -> None:
    assert region_near(*place) == region


@pytest.mark.parametrize("place", [(91, 0), (0, 181), (math.nan, 0), (0, math.inf)])
def test_what_is_no_place_is_refused(place: tuple[float, float]) -> None:
    with pytest.raises(InvalidInput, match="no place"):
        region_near(*place)
