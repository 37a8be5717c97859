"""What a call may ask of a route."""

from __future__ import annotations

from typing import Literal, get_args

from nearmesh.errors import InvalidInput

Objective = Literal["cheapest-in-time", "nearest", "cheapest"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)
DEFAULT_OBJECTIVE: Objective = "cheapest-in-time"
DEFAULT_DEADLINE_MS = 300.0
# The header (gRPC metadata key) by which a single call names its objective.
OBJECTIVE_HEADER = "nearmesh-objective"

# A node is in time for a locality when at least this share of its requests is.
IN_TIME = 0.99


def parse_objective(text: str) -> Objective:
    """The objective of that name. Raises InvalidInput."""
    for name in get_args(Objective):
        if text == name:
            return name  # type: ignore[no-any-return]
    raise InvalidInput(f"objective {text!r} is not one of {', '.join(OBJECTIVES)}")
