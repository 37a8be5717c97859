"""Which days are replayed: each slice names its prices, its rhythm, its machines and its seed; and the ill days.

A day is played in time-lapse: LAPSE seconds of the day pass in one second, for the daily rhythm, the prices and the
lives of spot machines. Requests, round trips, queues, notices and decisions are not sped up. So everything that has to
be learnt changes LAPSE times as fast as in truth, which the optimum does not mind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from benchmarks.replay import recorded
from benchmarks.replay.recorded import DAY_S, REGIONS, SpotLife, Trace
from benchmarks.replay.world import Absence, Array, Fault, Hardware, Node, Trouble, World, absences, arrivals
from nearmesh.regions import COORDINATES

LAPSE = 24
DEADLINE_MS = 200.0
# What a cloud gives before it takes a spot machine away.
NOTICE_S = 30.0
# A node is sized so that the busiest ten minutes of its own region's day would keep this share of it busy.
ON_DEMAND_LOAD, SPOT_LOAD = 0.4, 0.3
LEAST_INSTANCES = 4
# One day runs through so many days of price history: a region's price changes about six times.
PRICE_DAYS = 365

# Times of a small vision or text model as such machines serve it, one request at a time for each instance.
HARDWARE = {
    "g2-standard-4": Hardware(machine_type="g2-standard-4", service_ms_p50=40.0, service_ms_p95=60.0),
    "a2-highgpu-1g": Hardware(machine_type="a2-highgpu-1g", service_ms_p50=25.0, service_ms_p95=36.0),
    "n2-standard-4": Hardware(machine_type="n2-standard-4", service_ms_p50=60.0, service_ms_p95=80.0),
    "c3-standard-8": Hardware(machine_type="c3-standard-8", service_ms_p50=45.0, service_ms_p95=60.0),
}

Rhythm = Literal["taxi", "web", "launch"]
Texture = Literal["smooth", "bursty", "web"]
TEXTURES: dict[Texture, Callable[[], Trace]] = {
    "smooth": recorded.smooth_texture,
    "bursty": recorded.bursty_texture,
    "web": recorded.web_texture,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One day."""

    name: str
    seed: int
    machine_type: str
    prices_from: str
    rhythm: Rhythm
    texture: Texture
    # Mean over the day and the mesh, requests per second.
    per_second: float = 400.0
    # Which part of the day is played.
    start_hour: float = 0.0
    hours: float = 24.0

    @property
    def what(self) -> str:
        """In words."""
        return (
            f"{self.machine_type}, prices of the {PRICE_DAYS} days from {self.prices_from} on, rhythm of "
            f"{self.rhythm}, unrest of {self.texture}, {self.per_second:.0f} requests per second over the day, "
            f"{self.hours:g} hours from {self.start_hour:g}:00 UTC, seed {self.seed}."
        )


DAYS = (
    Slice(
        name="smooth",
        seed=1,
        machine_type="g2-standard-4",
        prices_from="2024-05-01",
        rhythm="taxi",
        texture="smooth",
    ),
    Slice(
        name="web",
        seed=2,
        machine_type="n2-standard-4",
        prices_from="2024-04-01",
        rhythm="web",
        texture="web",
    ),
    Slice(
        name="bursty",
        seed=3,
        machine_type="c3-standard-8",
        prices_from="2024-06-01",
        rhythm="taxi",
        texture="bursty",
    ),
    Slice(
        name="launch",
        seed=4,
        machine_type="n2-standard-4",
        prices_from="2023-06-01",
        rhythm="launch",
        texture="web",
    ),
    Slice(
        name="accelerated",
        seed=5,
        machine_type="a2-highgpu-1g",
        prices_from="2023-06-01",
        rhythm="taxi",
        texture="smooth",
    ),
    Slice(
        name="web again",
        seed=6,
        machine_type="g2-standard-4",
        prices_from="2023-07-01",
        rhythm="web",
        texture="web",
    ),
)

# The ill days: a part of the first one, for each fault.
ILL = replace(DAYS[0], name="ill", seed=11, start_hour=12.0, hours=4.0)
FAULTS: tuple[Fault, ...] = get_args(Fault)
ILL_SHARE = 0.25


def build(day: Slice) -> World:
    """The world of a slice. Raises NotFound without the recorded data."""
    rng = np.random.default_rng(day.seed)
    duration_s = day.hours * 3600 / LAPSE
    rhythm = _rates(day, rng)
    nodes = _nodes(HARDWARE[day.machine_type], rhythm)
    step_s = 1.0
    region_of = np.array([node.region for node in nodes])
    trips = recorded.round_trips()
    first, last = (round(hour * 3600 / LAPSE) for hour in (day.start_hour, day.start_hour + day.hours))
    rates = _textured(rhythm, TEXTURES[day.texture](), rng)[:, first:last]
    at, where = arrivals(rng, rates, step_s)
    history = recorded.prices(day.machine_type, day.prices_from, PRICE_DAYS)
    spot = np.array([node.spot for node in nodes])
    return World(
        name=day.name,
        regions=REGIONS,
        nodes=nodes,
        duration_s=duration_s,
        deadline_ms=DEADLINE_MS,
        least_ms=trips.least_ms[:, region_of],
        mean_ms=trips.mean_ms[:, region_of],
        deviation_ms=trips.deviation_ms[:, region_of],
        price_since_s=history.since * duration_s,
        usd_per_hour=np.where(spot, history.spot[:, region_of], history.on_demand[:, region_of]),
        absences=tuple(_spot_lives(rng, nodes, duration_s)),
        arrival_s=at,
        arrival_region=where,
        work=np.exp(HARDWARE[day.machine_type].sigma * rng.standard_normal(len(at))),
    )


def ill(world: World, fault: Fault, seed: int) -> World:
    """The same day with ILL_SHARE of the nodes ill, from a quarter of the time on to three quarters of it."""
    count = round(ILL_SHARE * len(world.nodes))
    chosen = np.random.default_rng(seed).choice(len(world.nodes), count, replace=False)
    start_s, end_s = world.duration_s / 4, world.duration_s * 3 / 4
    troubles = tuple(Trouble(int(node), fault, start_s, end_s) for node in sorted(chosen))
    return replace(world, name=fault, troubles=troubles)


def _rates(day: Slice, rng: np.random.Generator) -> Array:
    """Mean requests per second of each region, second by second of the whole day in time-lapse."""
    weights = rng.lognormal(0.0, 0.4, len(REGIONS))
    weights /= weights.sum()
    seconds = DAY_S // LAPSE
    rates = np.zeros((len(REGIONS), seconds))
    for place, region in enumerate(REGIONS):
        rhythm = _rhythm(day.rhythm, rng)
        # Local time by the sun: fifteen degrees an hour.
        hours = (np.arange(seconds) * LAPSE / 3600 + COORDINATES[region][1] / 15) % 24
        points = (np.arange(len(rhythm)) + 0.5) * 24 / len(rhythm)
        rates[place] = weights[place] * day.per_second * np.interp(hours, points, rhythm, period=24)
    return rates


def _rhythm(kind: Rhythm, rng: np.random.Generator) -> Array:
    """Every region has a day of its own."""
    if kind == "launch" and rng.random() < 0.3:
        return recorded.launch_day()
    found = recorded.taxi_days() if kind == "taxi" else recorded.web_days()
    return found[rng.integers(len(found))]


def _textured(rates: Array, trace: Trace, rng: np.random.Generator) -> Array:
    """Each region's rate with the unrest of a trace: as many of it at once as make up the region's mean, each from a
    second of its own on. One alone, scaled up, would be far rougher than any crowd is."""
    seconds = rates.shape[1]
    repeated = np.tile(trace.texture, math.ceil(2 * seconds / len(trace.texture)))
    found = np.zeros_like(rates)
    for place, rate in enumerate(rates):
        copies = max(1, round(float(rate.mean()) / trace.per_second))
        for start in rng.integers(seconds, size=copies):
            found[place] += rate * repeated[start : start + seconds] / copies
    return found


def _nodes(hardware: Hardware, rates: Array) -> tuple[Node, ...]:
    """One on demand in every region, and one spot."""
    found: list[Node] = []
    ten_minutes = max(1, 600 // LAPSE)
    for place, region in enumerate(REGIONS):
        peak = rates[place, : rates.shape[1] // ten_minutes * ten_minutes].reshape(-1, ten_minutes).mean(axis=1).max()
        for spot, load in ((False, ON_DEMAND_LOAD), (True, SPOT_LOAD)):
            busy = peak * hardware.service_ms_mean / 1000
            name = f"{region}-{'spot' if spot else 'od'}"
            instances = max(LEAST_INSTANCES, math.ceil(busy / load))
            found.append(Node(id=name, region=place, spot=spot, instances=instances, hardware=hardware))
    return tuple(found)


def _spot_lives(rng: np.random.Generator, nodes: tuple[Node, ...], duration_s: float) -> list[Absence]:
    """Each region's spot machine lives like that of a zone that was watched."""
    lives: list[SpotLife] = recorded.spot_lives()
    found: list[Absence] = []
    for place, node in enumerate(nodes):
        if node.spot:
            life = lives[rng.integers(len(lives))]
            up_s, down_s = (hours * 3600 / LAPSE for hours in (life.up_hours, life.down_hours))
            found.extend(absences(rng, place, up_s, down_s, duration_s, NOTICE_S))
    return found
