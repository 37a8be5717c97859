"""What sites answer, read with care: everything in it is a site's word, and may be anything.

An answer counts when it is of this round and of the parameters that were sent, fits them in name, shape and dtype, and
has no number that is not finite. Else `Unfit` says what is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict

from nearmesh.round_messages import (
    ARRAYS,
    BASE,
    CONFIG,
    DIFFERENCE,
    METRICS,
    NUM_EXAMPLES,
    SERVER_ROUND,
    TRAIN_S,
    YIELDED_S,
)
from nearmesh.round_messages import digest as digest_of
from nearmesh_controlplane.rounds.layout import Layout, Unfit, Vector

# Above, a count is a lie or a mistake; it would outweigh every other site.
MOST_EXAMPLES = 10**12
# Figures that are kept of an answer.
MOST_FIGURES = 32
LONGEST_NAME = 64
_OWN = {NUM_EXAMPLES, TRAIN_S, YIELDED_S, DIFFERENCE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A site's answer to TRAIN."""

    update: Vector
    # Digest of its parameters.
    sent: str
    examples: int
    figures: Mapping[str, float]
    train_s: float = 0.0
    yielded_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A site's answer to EVALUATE or QUERY."""

    examples: int
    figures: Mapping[str, float]
    difference: float | None = None


def trained(
    content: RecordDict, *, layout: Layout, base: Vector, number: int, digest: str, old: Mapping[str, str]
) -> Trained:
    """Raises Unfit. `old` are digests of parameters that were there before, and what they are."""
    config: Mapping[str, object] = content.config_records.get(CONFIG, {})
    if config.get(SERVER_ROUND) != number:
        raise Unfit(f"stale: it is of round {_short(config.get(SERVER_ROUND))}, this is round {number}")
    if config.get(BASE) != digest:
        raise Unfit("stale: it was trained from other parameters than those of this round")
    if ARRAYS not in content.array_records:
        raise Unfit("it has no parameters")
    arrays = layout.read(content.array_records[ARRAYS])
    sent = digest_of(arrays)
    if sent in old:
        raise Unfit(f"stale: it is {old[sent]}")
    vector = layout.vector(arrays)
    if not np.isfinite(vector).all():
        raise Unfit(f"{int((~np.isfinite(vector)).sum())} of its {len(vector)} numbers are not finite")
    with np.errstate(over="ignore"):
        update = vector - base
        if not np.isfinite(np.square(update).sum()):
            raise Unfit("its change is too large for a number")
    metrics = _metrics(content)
    return Trained(
        update=update,
        sent=sent,
        examples=_examples(metrics),
        figures=_figures(metrics),
        train_s=_seconds(metrics, TRAIN_S),
        yielded_s=_seconds(metrics, YIELDED_S),
    )


def evaluated(content: RecordDict, metric: str) -> Evaluated:
    """Raises Unfit."""
    metrics = _metrics(content)
    figures = _figures(metrics)
    if metric not in figures:
        raise Unfit(f"it has no finite figure {metric!r}; it has {', '.join(figures) or 'none'}")
    return Evaluated(examples=_examples(metrics), figures=figures, difference=_number(metrics.get(DIFFERENCE)))


def pooled(figures: list[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Each figure's mean over the sites that have it, weighted by their examples."""
    found: dict[str, float] = {}
    for name in sorted({name for _, of_site in figures for name in of_site}):
        having = [(examples, of_site[name]) for examples, of_site in figures if name in of_site]
        found[name] = sum(examples * value for examples, value in having) / sum(examples for examples, _ in having)
    return found


def _metrics(content: RecordDict) -> Mapping[str, object]:
    if METRICS not in content.metric_records:
        raise Unfit("it has no figures")
    return content.metric_records[METRICS]


def _examples(metrics: Mapping[str, object]) -> int:
    found = _number(metrics.get(NUM_EXAMPLES))
    if found is None or not 1 <= found <= MOST_EXAMPLES or found != int(found):
        raise Unfit(f"{NUM_EXAMPLES} is {_short(metrics.get(NUM_EXAMPLES))}, not a count from 1 on")
    return int(found)


def _figures(metrics: Mapping[str, object]) -> dict[str, float]:
    """Those that are finite numbers."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        number = _number(value)
        if number is not None and name not in _OWN and len(name) <= LONGEST_NAME and name.isprintable():
            found[name] = number
        if len(found) == MOST_FIGURES:
            break
    return found


def _seconds(metrics: Mapping[str, object], name: str) -> float:
    return max(0.0, _number(metrics.get(name)) or 0.0)


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:
        return None


def _short(value: object) -> str:
    """As people are shown it."""
    return "none" if value is None else repr(value)[:20]
