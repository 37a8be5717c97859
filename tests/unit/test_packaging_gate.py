"""Which figures keep a variant from being published."""

from __future__ import annotations

import math

import pytest

from nearmesh.package import Gate
from nearmesh.packaging.gate import Figures, reasons_against

REFERENCE = Figures(metric=0.99)
GATE = Gate(largest_loss=0.01, smallest_agreement=0.98)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({}, ()),
        # Just as much as may be lost, although 0.99 - 0.98 is more than 0.01 in binary.
        ({"metric": 0.98, "agreement": 0.98}, ()),
        # Better than the reference, and another way.
        ({"metric": 1.0, "agreement": 0.985}, ()),
        ({"metric": 0.975}, ("accuracy 0.9750 is 0.0150 below the 0.9900 of fp32, largest_loss is 0.01",)),
        (
            {"agreement": 0.9712},
            ("it says what fp32 says in 97.12 % of the cases, smallest_agreement is 98 %",),
        ),
        ({"broken": 3}, ("3 of the numbers in its outputs are NaN or infinite",)),
        ({"metric": math.nan}, ("its accuracy is nan",)),
        ({"metric": math.inf}, ("its accuracy is inf",)),
        ({"agreement": math.nan}, ("it says what fp32 says in nan % of the cases, smallest_agreement is 98 %",)),
    ],
)
def test_p5_what_fails(figures, said):
    variant = Figures(**{"metric": 0.99, **figures})
    assert reasons_against(GATE, variant, REFERENCE, of="fp32", metric="accuracy") == said


def test_p5_everything_that_is_wrong_is_said():
    worst = Figures(metric=0.1, agreement=0.2, broken=7)
    assert len(reasons_against(GATE, worst, REFERENCE, of="fp32", metric="accuracy")) == 3


def test_the_reference_is_judged_as_a_variant_of_itself():
    assert reasons_against(GATE, REFERENCE, REFERENCE, of="fp32", metric="accuracy") == ()
    nan = Figures(metric=math.nan, broken=1)
    assert len(reasons_against(GATE, nan, nan, of="fp32", metric="accuracy")) == 2
