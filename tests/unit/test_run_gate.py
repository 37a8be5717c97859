"""The gate of runs: what it refuses, and with which figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from nearmesh_controlplane.runs import gate
from nearmesh_controlplane.runs.candidates import Limits
from nearmesh_controlplane.runs.folder import COUNTED, Judged, RoundRecord, SiteRecord
from nearmesh_controlplane.runs.gate import Evidence, checks

PARENT = {"w": np.array([3.0, 4.0], np.float32), "b": np.zeros(1, np.float32)}
NAN = math.nan


def before(**accuracy: float) -> RoundRecord:
    sites = [SiteRecord(node=n, answer=COUNTED, metrics={"accuracy": value}) for n, value in accuracy.items()]
    return RoundRecord(number=0, began_at_s=0, ended_at_s=1, sites=sites)


def site(node: str, accuracy: float, examples: int = 10, difference: float | None = 1e-6, **more: Any) -> Judged:
    return Judged(node=node, examples=examples, metrics={"accuracy": accuracy}, difference=difference, **more)


def evidence(**more: Any) -> Evidence:
    values = {
        "parent": PARENT,
        "candidate": {name: array + np.float32(0.5) for name, array in PARENT.items()},
        "before": before(a=0.8, b=0.6),
        "judged": [site("a", 0.8), site("b", 0.7)],
        "metric": "accuracy",
        "tolerance": 1e-4,
        "min_sites": 2,
        **more,
    }
    return Evidence(**values)


def test_a_better_model_passes_everything() -> None:
    found = checks(evidence(), Limits())
    assert [(one.name, one.passed) for one in found] == [
        (name, True) for name in ("finite", "norm", "sites", "site a", "site b", "mean", "parity")
    ]
    said = {one.name: one.detail for one in found}
    assert said["finite"] == "3 numbers in 2 arrays are finite"
    assert said["norm"] == "the change is 0.1732 times as long as the parent's parameters; at most 10"
    assert said["site b"] == "accuracy 0.6000 -> 0.7000 over 10 examples, gains 0.1000; may lose 0.02"
    assert said["mean"] == "accuracy 0.7000 -> 0.7500, gains 0.0500; has to gain 0"
    assert said["parity"] == (
        "the graph's outputs differ by at most 1e-06 from the framework's at 2 sites; tolerance 0.0001"
    )
    assert gate.said(found) == ""


def changed(**arrays: Any) -> dict[str, Any]:
    return {"candidate": {**PARENT, **arrays}}


REFUSALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "not a number": (changed(b=np.array([NAN], np.float32)), "finite", "not finite numbers alone: b"),
    "infinite": (changed(w=np.array([np.inf, 1], np.float32)), "finite", "not finite numbers alone: w"),
    "another shape": (changed(w=np.zeros(3, np.float32)), "finite", "another shape than in the parent: w"),
    "another name": ({"candidate": {"w": PARENT["w"]}}, "finite", "others than the parent's: b"),
    "far away": (changed(w=np.array([300.0, 400.0], np.float32)), "norm", "99 times as long"),
    "a site loses": ({"judged": [site("a", 0.7), site("b", 0.9)]}, "site a", "loses 0.1000; may lose 0.02"),
    "a site gone mad": ({"judged": [site("a", NAN), site("b", 0.9)]}, "site a", "0.8000 -> nan"),
    "all lose a little": ({"judged": [site("a", 0.79), site("b", 0.59)]}, "mean", "gains -0.0100; has to gain 0"),
    "the large one loses": (
        {"judged": [site("a", 0.785, examples=1000), site("b", 0.7, examples=10)]},
        "mean",
        "has to gain 0",
    ),
    "the graph is another": ({"judged": [site("a", 0.8, difference=0.5), site("b", 0.7)]}, "parity", "at most 0.5"),
    "the graph is mad": ({"judged": [site("a", 0.8, difference=NAN), site("b", 0.7)]}, "parity", "at most nan"),
    "one site alone": (
        {"judged": [site("a", 0.9), Judged(node="b", failed="it was not there")]},
        "sites",
        "1 sites have judged both models by 'accuracy'; at least 2 (b: it was not there)",
    ),
    "another metric": (
        {"judged": [site("a", 0.9), Judged(node="b", examples=3, metrics={"loss": 1.0})]},
        "sites",
        "(b: no 'accuracy' among what it says (loss))",
    ),
    "one that came later": ({"before": before(a=0.8)}, "sites", "(b: it has not judged the parent)"),
    "the parent was never judged": ({"before": None}, "sites", "0 sites have judged both"),
    "nobody judged": ({"judged": []}, "sites", "0 sites have judged both"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_is_refused(what: str) -> None:
    more, name, words = REFUSALS[what]
    found = checks(evidence(**more), Limits())
    failed = [one for one in found if not one.passed]
    assert failed[0].name == name
    assert words in failed[0].detail
    assert gate.said(found) == "; ".join(f"{one.name}: {one.detail}" for one in failed)
    assert all(one.passed for one in checks(evidence(), Limits()))


@pytest.mark.parametrize(
    ("limits", "passes"),
    [
        (Limits(largest_site_loss=0.1), True),
        (Limits(largest_site_loss=0.09), False),
        (Limits(largest_site_loss=0.1, smallest_mean_gain=0.05), True),
        (Limits(largest_site_loss=0.1, smallest_mean_gain=0.051), False),
        (Limits(largest_site_loss=0.1, largest_change=0.1), False),
    ],
)
def test_the_limits_are_the_package_s(limits: Limits, passes: bool) -> None:
    judged = [site("a", 0.7), site("b", 0.8)]
    assert all(one.passed for one in checks(evidence(judged=judged), limits)) == passes


def test_what_cannot_be_compared_stops_nobody() -> None:
    """A parent of zeros has no length, a site without a framework no outputs, and one that counts nothing a voice."""
    zeros = {name: np.zeros_like(array) for name, array in PARENT.items()}
    judged = [site("a", 0.8, 0, None), site("b", 0.7, 0, None)]
    found = checks(evidence(parent=zeros, candidate=PARENT, judged=judged), Limits())
    assert all(one.passed for one in found)
    assert found[-1].detail == "no site has a framework whose outputs to compare with"
    # One that came later is not held against a model that enough others have judged.
    more = evidence(judged=[site("a", 0.8), site("b", 0.7), site("c", 0.1)])
    assert all(one.passed for one in checks(more, Limits()))
