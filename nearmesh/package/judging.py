"""`[evaluation]`, `[gate]` and `[online_check]`: how good a variant and a new version have to be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearmesh.config import Problem, refuse
from nearmesh.package.steps import is_function

METRICS = ("accuracy", "cosine", "exact")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Cases that every variant is tried on before it is published. They stay with the author: no node gets them."""

    # An .npz with arrays input.NAME, and expected.NAME where the metric wants it; the first axis counts cases.
    file: str
    # accuracy: the share of cases whose largest value stands where expected, which is a label for each case; cosine:
    # the mean cosine with expected vectors; exact: the share of cases that are just as expected; or FILE.py:FUNCTION,
    # a function of the package's own that takes outputs and expected arrays by name and returns a number. Higher is
    # better.
    metric: str = "accuracy"
    # The output that is judged. Default: the first.
    output: str | None = None

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if self.metric not in METRICS and not is_function(self.metric):
            said = f"evaluation.metric is {self.metric!r}; expected {', '.join(METRICS)} or FILE.py:FUNCTION"
            yield Problem(("metric",), said)

    @property
    def code(self) -> str | None:
        """The file that has the metric's function, if it is one of the package's own."""
        return None if self.metric in METRICS else self.metric.partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a variant may lose, against the one that all others are made from, and still be published."""

    # Of the metric.
    largest_loss: float = 0.01
    # Share of the cases in which it must say what the reference says: the same place of the largest value, or for
    # vectors a cosine of 0.99.
    smallest_agreement: float = 0.98

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if self.largest_loss < 0:
            yield Problem(("largest_loss",), f"gate.largest_loss must be 0 or more, got {self.largest_loss:g}")
        yield from _is_share("gate", "smallest_agreement", self.smallest_agreement)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineCheck:
    """How the answers of a new version are held against those of the standing one, on requests that both got."""

    # The output that is compared. Default: the first.
    output: str | None = None
    # argmax: the largest value of the last axis stands in the same place; close: |a - b| <= atol + rtol x |b|
    # everywhere, and texts are equal; cosine: of each row (axis 0), all values together, 1 - cosine <= atol.
    agree: Literal["argmax", "close", "cosine"] = "argmax"
    rtol: float = 1e-2
    atol: float = 1e-2
    # Share of the compared answers that must agree.
    smallest_agreement: float = 0.9

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[Problem]:
        for key, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value < 0:
                yield Problem((key,), f"online_check.{key} must be 0 or more, got {value:g}")
        yield from _is_share("online_check", "smallest_agreement", self.smallest_agreement)


def _is_share(section: str, key: str, value: float) -> Iterator[Problem]:
    if not 0 <= value <= 1:
        yield Problem((key,), f"{section}.{key} is a share, 0 to 1, got {value:g}")
