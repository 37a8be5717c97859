"""How a route is decided: objectives, times, prices, the rule that ranks candidates, and the tables that come of it.

Pure, without sockets and without a clock, so that the control plane, the nodes, the SDK and a replay decide alike.
"""

from nearmesh.routing.rule import (
    DEFAULT_DEADLINE_MS,
    DEFAULT_OBJECTIVE,
    HYSTERESIS,
    OBJECTIVE_HEADER,
    OBJECTIVES,
    Candidate,
    Objective,
    Ranked,
    format_usd,
    parse_objective,
    rank,
    usd_per_1000,
    with_network,
)

__all__ = [
    "DEFAULT_DEADLINE_MS",
    "DEFAULT_OBJECTIVE",
    "HYSTERESIS",
    "OBJECTIVES",
    "OBJECTIVE_HEADER",
    "Candidate",
    "Objective",
    "Ranked",
    "format_usd",
    "parse_objective",
    "rank",
    "usd_per_1000",
    "with_network",
]
