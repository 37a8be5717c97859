"""Whether a variant is good enough to be published: decided by its figures alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nearmesh.package import Gate

# Of two metrics that are equal but for the way their sums were rounded.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the cases showed of one variant."""

    # Higher is better; not finite where the outputs could not be judged.
    metric: float
    # Share of the cases in which it says what the reference says. The reference agrees with itself.
    agreement: float = 1.0
    # Numbers among the outputs that are NaN, or infinite where the reference's are not.
    broken: int = 0


def reasons_against(gate: Gate, figures: Figures, reference: Figures, *, of: str, metric: str) -> tuple[str, ...]:
    """Why the variant may not be published, for people; none: it may.

    `of` is the reference's name, `metric` what is measured. The reference is judged as a variant of itself.
    """
    found = []
    if figures.broken:
        found.append(f"{figures.broken} of the numbers in its outputs are NaN or infinite")
    if not math.isfinite(figures.metric):
        found.append(f"its {metric} is {figures.metric}")
    elif math.isfinite(reference.metric):
        loss = reference.metric - figures.metric
        if loss > gate.largest_loss + _ROUNDING:
            found.append(
                f"{metric} {figures.metric:.4f} is {loss:.4f} below the {reference.metric:.4f} of {of}, "
                f"largest_loss is {gate.largest_loss:g}"
            )
    # Written so that a NaN fails.
    if not figures.agreement >= gate.smallest_agreement - _ROUNDING:
        found.append(
            f"it says what {of} says in {100 * figures.agreement:.2f} % of the cases, "
            f"smallest_agreement is {100 * gate.smallest_agreement:g} %"
        )
    return tuple(found)
