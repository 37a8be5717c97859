"""Is the nearest site found for a client that nobody has measured, and by how many probes?

    python -m benchmarks.coordinates

Each of 20 regions of one cloud in turn is the client: its round trips are left out, those among the others are known,
all of them or half. It chooses the nearest site from coordinates alone, and after at most five probes. The ratio is
the chosen site's true round trip to the best one's. Reads gcp_region_rtt/ in the folder that NEARMESH_TEST_DATA names.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearmesh_controlplane.routing.coordinates import Coordinates

from benchmarks.machine import commit, machine
from benchmarks.probing import best_site, next_probe
from benchmarks.table import Table, markdown
from nearmesh.quantiles import quantile
from nearmesh.regions import COORDINATES, prior_round_trip_ms

RESULTS = Path(__file__).parent / "results"
DATA = Path("gcp_region_rtt") / "rtt.csv"
SEEDS = 20

Matrix = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """Chosen over best, over all clients and seeds."""

    mean: float
    p95: float
    worst: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratios:
        ordered = sorted(values)
        return cls(mean=statistics.fmean(ordered), p95=quantile(ordered, 0.95), worst=ordered[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One question, asked for every client."""

    what: str
    choices: int
    distance: Ratios
    alone: Ratios
    probed: Ratios
    probes_mean: float
    probes_most: int


def data_folder() -> Path | None:
    """Where the development data are, if anybody said so."""
    named = os.environ.get("NEARMESH_TEST_DATA")
    return Path(named) if named else None


def read_matrix(folder: Path | None) -> Matrix | None:
    """Average round trips in ms by pair of regions, or None when they are not there."""
    if folder is None or not (folder / DATA).is_file():
        return None
    with (folder / DATA).open(newline="", encoding="utf-8") as file:
        return {(row["source"], row["target"]): float(row["rtt_avg_ms"]) for row in csv.DictReader(file)}


def left_out(matrix: Matrix, *, missing: float, seeds: int) -> list[Variant]:
    """Every region in turn as the client; `missing` of the other regions' pairs are unknown as well."""
    return [
        _variant("a site in every region", matrix, missing, seeds, own=True, sites=None),
        _variant("none in the client's own", matrix, missing, seeds, own=False, sites=None),
    ]


def few_sites(matrix: Matrix, *, missing: float, seeds: int) -> list[Variant]:
    """With sites in a few regions alone, drawn anew for each seed and client, none in the client's own."""
    return [
        _variant(f"{count} sites, none in the client's own", matrix, missing, seeds, own=False, sites=count)
        for count in (4, 8)
    ]


def _variant(what: str, matrix: Matrix, missing: float, seeds: int, *, own: bool, sites: int | None) -> Variant:
    regions = sorted({a for a, _ in matrix})
    found: list[tuple[float, float, float, int]] = []
    for seed, client in itertools.product(range(seeds), regions):
        chance = random.Random(f"{seed} {client}")
        others = [region for region in regions if region != client]
        coordinates = _known(matrix, others, missing, chance)
        offered = others if sites is None else chance.sample(others, sites)
        found.append(_choices(matrix, coordinates, client, [*offered, *([client] if own else [])]))
    distance, alone, probed, probes = zip(*found, strict=True)
    return Variant(
        what=f"{what}; {missing:.0%} of the other pairs unknown" if missing else what,
        choices=len(found),
        distance=Ratios.of(distance),
        alone=Ratios.of(alone),
        probed=Ratios.of(probed),
        probes_mean=statistics.fmean(probes),
        probes_most=max(probes),
    )


def _known(matrix: Matrix, regions: Sequence[str], missing: float, chance: random.Random) -> Coordinates:
    pairs = [pair for pair in itertools.combinations(regions, 2) if chance.random() >= missing]
    return Coordinates({(COORDINATES[a], COORDINATES[b]): matrix[a, b] for a, b in pairs})


def _choices(
    matrix: Matrix, coordinates: Coordinates, client: str, sites: Sequence[str]
) -> tuple[float, float, float, int]:
    """The ratio by distance, from coordinates alone, and after probes; and how many of those."""
    true_ms = [matrix[client, site] for site in sites]
    best_ms = min(true_ms)
    means, covariance = coordinates.joint(COORDINATES[client], [COORDINATES[site] for site in sites])
    probed: dict[int, float] = {}
    while (site := next_probe(means, covariance, probed)) is not None:
        probed[site] = true_ms[site]
    nearest = min(range(len(sites)), key=lambda at: prior_round_trip_ms(client, sites[at]))
    chosen = nearest, best_site(means, covariance, {}), best_site(means, covariance, probed)
    distance, alone, after = (true_ms[at] / best_ms for at in chosen)
    return distance, alone, after, len(probed)


def run(matrix: Matrix, command: str) -> dict[str, Any]:
    """All variants, as JSON."""
    variants = [*left_out(matrix, missing=0.0, seeds=1), *left_out(matrix, missing=0.5, seeds=SEEDS)]
    for missing in (0.0, 0.5):
        variants += few_sites(matrix, missing=missing, seeds=SEEDS)
    taken = {"command": command, **commit(), "machine": machine()}
    return {"taken": taken, "seeds": SEEDS, "variants": [asdict(variant) for variant in variants]}


def table(results: Mapping[str, Any]) -> Table:
    """A row for each variant."""
    columns = ("sites", "choices", "by distance", "from coordinates alone", "after probes", "probes")
    rows = []
    for variant in results["variants"]:
        ratios = (variant[key] for key in ("distance", "alone", "probed"))
        figures = (f"{r['mean']:.3f} / {r['p95']:.3f} / {r['worst']:.3f}" for r in ratios)
        probes = f"{variant['probes_mean']:.1f}, at most {variant['probes_most']}"
        rows.append((variant["what"], str(variant["choices"]), *figures, probes))
    return Table(title="Chosen over best: mean / 95th percentile / worst", columns=columns, rows=tuple(rows))


def page(results: Mapping[str, Any]) -> str:
    """The results as one can read them."""
    taken, found = results["taken"], table(results)
    host = taken["machine"]
    changed = ", with uncommitted changes" if taken["uncommitted_changes"] else ""
    parts = (
        "# The nearest site for a client that nobody has measured",
        f"Written by `{taken['command']}`; a new run replaces it. All figures are in `coordinates.json` beside it.",
        _WHAT.format(seeds=results["seeds"]),
        f"## {found.title}",
        markdown(found),
        _HOW,
        f"Taken on {host['cpu']}, {host['cores']} cores, Python {host['python']}, at commit "
        f"{taken['commit'][:12]}{changed}. Nothing here is a time of this machine.",
    )
    return "\n\n".join(parts) + "\n"


_WHAT = """\
Each of 20 regions of one cloud (round trips of June 2020 from vitorenesduarte/fantoch, Apache-2.0 or MIT) in turn is a
client of which nothing is known but where it lies. Known are the round trips among the other 19, all of them or a
random half ({seeds} draws for each client). The figures are the chosen site's true round trip over the best site's."""

_HOW = """\
The probes are chosen one after the other: the best guess first, then where the expected improvement is largest. The
parameters of the inference were fitted by likelihood over the same 20 regions; each client's own round trips are
unknown to it all the same. The worst choices without a probe are between cities a few milliseconds away, or between
continents where the distance misleads and the pairs that would tell are unknown."""


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Both files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coordinates.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (folder / "coordinates.md").write_text(page(results), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coordinates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER", help="default benchmarks/results")
    options = parser.parse_args(given)
    matrix = read_matrix(data_folder())
    if matrix is None:
        print(f"Error: no {DATA} found; set NEARMESH_TEST_DATA to the folder that has it", file=sys.stderr)
        return 1
    results = run(matrix, " ".join(["python -m benchmarks.coordinates", *given]))
    print(markdown(table(results)))
    write(results, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
