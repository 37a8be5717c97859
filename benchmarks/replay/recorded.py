"""The recorded data that a replay stands on, read from the folder that NEARMESH_TEST_DATA names.

Nothing of it is part of this project: round trips between twenty regions, two years of machine prices, counts of
requests over time, and how long spot machines lived. Each reader returns plain arrays in the order of REGIONS.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nearmesh.errors import NotFound
from nearmesh.regions import COORDINATES

Array = npt.NDArray[np.float64]

VARIABLE = "NEARMESH_TEST_DATA"
REGIONS = tuple(sorted(COORDINATES))
DAY_S = 86_400


def folder() -> Path:
    """Where the data lies. Raises NotFound."""
    named = os.environ.get(VARIABLE)
    if not named or not Path(named, "gcp_region_rtt").is_dir():
        raise NotFound(f"{VARIABLE} is {named!r}, which is not the folder of recorded data; set it to that folder")
    return Path(named)


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """Milliseconds between regions; float64, shape (regions, regions), in the order of REGIONS."""

    least_ms: Array
    mean_ms: Array
    deviation_ms: Array


def round_trips() -> RoundTrips:
    """Measured by ping between all twenty regions."""
    least, mean, deviation = (np.zeros((len(REGIONS), len(REGIONS))) for _ in range(3))
    for row in _rows("gcp_region_rtt/rtt.csv"):
        pair = REGIONS.index(row["source"]), REGIONS.index(row["target"])
        least[pair], mean[pair] = float(row["rtt_min_ms"]), float(row["rtt_avg_ms"])
        deviation[pair] = float(row["rtt_mdev_ms"])
    return RoundTrips(least, mean, deviation)


@dataclass(frozen=True, slots=True)
class Prices:
    """What one type of machine cost over a stretch of history."""

    # When each row begins to hold, as a share of the stretch; the first is 0.
    since: Array
    # USD per hour; shape (rows, regions).
    on_demand: Array
    spot: Array


def prices(machine_type: str, start: str, days: int) -> Prices:
    """The history from the day `start` on: one row for each day on which a price changed."""
    first = datetime.date.fromisoformat(start)
    changes = [row for row in _rows("gcp_prices/price_changes.csv") if row["machine_type"] == machine_type]
    changes = [row for row in changes if row["region"] in COORDINATES]
    changes.sort(key=lambda row: row["date"])
    on_demand, spot = np.full(len(REGIONS), np.nan), np.full(len(REGIONS), np.nan)
    rows: dict[float, tuple[Array, Array]] = {}
    for row in changes:
        day = (datetime.date.fromisoformat(row["date"]) - first).days
        if day >= days:
            break
        place = REGIONS.index(row["region"])
        on_demand[place] = float(row["usd_per_hour"])
        # Where no spot price was listed, the last one that was.
        spot[place] = float(row["usd_per_hour_spot"] or spot[place])
        rows[max(0, day) / days] = (on_demand.copy(), spot.copy())
    return Prices(np.array(list(rows)), *(np.array([row[kind] for row in rows.values()]) for kind in (0, 1)))


@dataclass(frozen=True, slots=True)
class SpotLife:
    """How long the spot machines of a zone could be had, and how long not; means, hours."""

    up_hours: float
    down_hours: float


def spot_lives() -> list[SpotLife]:
    """One for each zone that was watched for weeks."""
    rows = _rows("spot_availability_summary/summary.csv")
    return [SpotLife(float(row["up_hours_mean"]), float(row["down_hours_mean"])) for row in rows]


@dataclass(frozen=True, slots=True)
class Trace:
    """How restless arrivals are."""

    # Requests per second of the service that was recorded.
    per_second: float
    # One value for each second; the mean is one.
    texture: Array


# Counts of requests. A rhythm has one value for each equal part of a local day; the mean is one.


def taxi_days() -> list[Array]:
    """Passengers of New York's taxis, half hour by half hour: a smooth rhythm, one array for each full day."""
    counts = [float(row["passengers"]) for row in _rows("nab_demand/nyc_taxi_30min.csv")]
    return _days(counts, 48)


def web_days() -> list[Array]:
    """Requests to NASA's web server in July 1995 by ten minutes: a rhythm with a will of its own."""
    counts = [float(row["requests"]) for row in _rows("nasa_http_1995_jul/requests_per_minute.csv")]
    return [day for day in _days(_summed(counts, 10), 144) if day.min() > 0]


def launch_day() -> Array:
    """The same server on 13 July 1995, when a shuttle was launched."""
    return _of_mean_one(_summed(_launch_seconds(), 600))


def smooth_texture() -> Trace:
    """Arrivals at a language model service of Azure: hardly more than chance."""
    return _seconds([float(row["arrival_s"]) for row in _rows("azure_llm_2023_conv/requests.csv")])


def bursty_texture() -> Trace:
    """Arrivals at a chat service (Mooncake): bursts eight times as rough as chance."""
    path = folder() / "mooncake_conversation/trace.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        return _seconds([json.loads(line)["timestamp"] / 1000 for line in lines])


def web_texture() -> Trace:
    """The seconds of NASA's launch day between nine and three, each against its ten minutes."""
    seconds = np.array(_launch_seconds()).reshape(-1, 600)[54:90]
    return Trace(float(seconds.mean()), _of_mean_one(list((seconds / seconds.mean(axis=1, keepdims=True)).ravel())))


def _launch_seconds() -> list[float]:
    return [float(row["requests"]) for row in _rows("nasa_http_1995_jul/requests_per_second_1995-07-13.csv.gz")]


def _days(counts: list[float], parts: int) -> list[Array]:
    return [_of_mean_one(counts[at : at + parts]) for at in range(0, len(counts) - parts + 1, parts)]


def _summed(counts: list[float], width: int) -> list[float]:
    return [sum(counts[at : at + width]) for at in range(0, len(counts), width)]


def _seconds(arrivals_s: list[float]) -> Trace:
    # The first and the last second may be cut.
    counts = np.bincount(np.array(arrivals_s).astype(int))[1:-1]
    return Trace(float(counts.mean()), _of_mean_one(list(counts)))


def _of_mean_one(counts: list[float]) -> Array:
    values = np.array(counts, dtype=np.float64)
    found: Array = values / max(values.mean(), 1e-9)
    return found


def _rows(name: str) -> Iterator[Mapping[str, str]]:
    path = folder() / name
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        yield from csv.DictReader(lines)
