"""Whether a trained model may go further: looks at its numbers, and at what the sites say of it. Pure.

A site compares the candidate's ONNX graph with the parent on the data that it held back: round 0 is the parent. Each
check has its figures in words, since a refused run is explained by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nearmesh_controlplane.runs.candidates import Limits
from nearmesh_controlplane.runs.folder import Arrays, Judged, RoundRecord
from nearmesh_controlplane.runs.run import Check

# Differences of figures are as exact as floating-point numbers are.
_ROUNDING = 1e-9
# Names that a message holds.
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that there is to judge by."""

    parent: Arrays
    candidate: Arrays
    # The parent, as the sites judged it; None: they never did.
    before: RoundRecord | None
    judged: Sequence[Judged]
    metric: str
    # Largest difference between the framework's outputs and the graph's.
    tolerance: float
    # So many sites have to have judged both.
    min_sites: int


@dataclass(frozen=True, slots=True)
class _Site:
    """One site's figures."""

    node: str
    examples: int
    before: float
    after: float


def checks(evidence: Evidence, limits: Limits) -> tuple[Check, ...]:
    """What was looked at; the candidate goes further if all passed. Numbers that are none are looked at alone."""
    finite = _finite(evidence.parent, evidence.candidate)
    if not finite.passed:
        return (finite,)
    sites = _sites(evidence)
    return (
        finite,
        _norm(evidence.parent, evidence.candidate, limits.largest_change),
        _enough(evidence, sites),
        *(_site(site, evidence.metric, limits.largest_site_loss) for site in sites),
        *([_mean(sites, evidence.metric, limits.smallest_mean_gain)] if sites else []),
        _parity(evidence.judged, evidence.tolerance),
    )


def said(checks: Sequence[Check]) -> str:
    """What did not pass, in words."""
    return "; ".join(f"{check.name}: {check.detail}" for check in checks if not check.passed)


def _finite(parent: Arrays, candidate: Arrays) -> Check:
    if other := sorted(parent.keys() ^ candidate.keys()):
        return Check(name="finite", passed=False, detail=f"the parameters are others than the parent's: {_some(other)}")
    if other := [name for name, array in candidate.items() if array.shape != parent[name].shape]:
        return Check(name="finite", passed=False, detail=f"another shape than in the parent: {_some(other)}")
    if bad := [name for name, array in candidate.items() if not np.isfinite(array).all()]:
        return Check(name="finite", passed=False, detail=f"not finite numbers alone: {_some(bad)}")
    count = sum(array.size for array in candidate.values())
    return Check(name="finite", passed=True, detail=f"{count} numbers in {len(candidate)} arrays are finite")


def _norm(parent: Arrays, candidate: Arrays, largest: float) -> Check:
    length = _length(parent)
    changed = _length({name: array.astype(np.float64) - parent[name] for name, array in candidate.items()})
    # A parent of zeros has no length to measure by.
    change = changed / length if length else changed
    detail = f"the change is {change:.4g} times as long as the parent's parameters; at most {largest:g}"
    return Check(name="norm", passed=change <= largest, detail=detail)


def _length(arrays: Mapping[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays.values()))


def _sites(evidence: Evidence) -> list[_Site]:
    """Those that judged both."""
    known = {site.node: site.metrics for site in evidence.before.sites} if evidence.before else {}
    return [
        _Site(one.node, one.examples, known[one.node][evidence.metric], one.metrics[evidence.metric])
        for one in sorted(evidence.judged, key=lambda one: one.node)
        if not one.failed and evidence.metric in one.metrics and evidence.metric in known.get(one.node, {})
    ]


def _enough(evidence: Evidence, sites: Sequence[_Site]) -> Check:
    """A candidate that too few looked at is not taken on trust."""
    detail = f"{len(sites)} sites have judged both models by {evidence.metric!r}; at least {evidence.min_sites}"
    compared = {site.node for site in sites}
    without = [f"{one.node}: {one.failed or _lacks(one, evidence)}" for one in evidence.judged]
    without = [words for one, words in zip(evidence.judged, without, strict=True) if one.node not in compared]
    if without:
        detail += f" ({'; '.join(sorted(without)[:_SHOWN])})"
    return Check(name="sites", passed=len(sites) >= evidence.min_sites, detail=detail)


def _lacks(one: Judged, evidence: Evidence) -> str:
    if evidence.metric not in one.metrics:
        return f"no {evidence.metric!r} among what it says ({_some(sorted(one.metrics)) or 'nothing'})"
    return "it has not judged the parent"


def _site(site: _Site, metric: str, largest_loss: float) -> Check:
    loss = site.before - site.after
    moved = f"loses {loss:.4f}" if loss > 0 else f"gains {abs(loss):.4f}"
    detail = f"{metric} {site.before:.4f} -> {site.after:.4f} over {site.examples} examples, {moved}"
    # nan fails every comparison.
    passed = loss <= largest_loss + _ROUNDING
    return Check(name=f"site {site.node}", passed=passed, detail=f"{detail}; may lose {largest_loss:g}")


def _mean(sites: Sequence[_Site], metric: str, smallest_gain: float) -> Check:
    # Sites that have not said how much they looked at count alike.
    weights = [site.examples for site in sites]
    weights = weights if sum(weights) else [1] * len(sites)
    before, after = (
        sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
        for values in ([site.before for site in sites], [site.after for site in sites])
    )
    detail = f"{metric} {before:.4f} -> {after:.4f}, gains {after - before:.4f}; has to gain {smallest_gain:g}"
    return Check(name="mean", passed=after - before >= smallest_gain - _ROUNDING, detail=detail)


def _parity(judged: Sequence[Judged], tolerance: float) -> Check:
    differences = [one.difference for one in judged if not one.failed and one.difference is not None]
    if not differences:
        return Check(name="parity", passed=True, detail="no site has a framework whose outputs to compare with")
    # max() would pass over nan where it stands first.
    largest = max(differences) if all(map(math.isfinite, differences)) else math.nan
    detail = (
        f"the graph's outputs differ by at most {largest:.3g} from the framework's at {len(differences)} sites; "
        f"tolerance {tolerance:g}"
    )
    return Check(name="parity", passed=largest <= tolerance, detail=detail)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
