"""How a route is decided: objectives, times, costs, the rule that ranks candidates, and the tables that come of it.

Pure, without sockets and without a clock, so that the control plane, the nodes, the SDK and a replay decide alike.
"""

from nearmesh.routing.costs import format_usd, transfer_usd_per_1000, usd_per_1000
from nearmesh.routing.objectives import (
    DEFAULT_DEADLINE_MS,
    DEFAULT_OBJECTIVE,
    HYSTERESIS,
    IN_TIME,
    OBJECTIVE_HEADER,
    OBJECTIVES,
    Objective,
    parse_objective,
)
from nearmesh.routing.rule import Candidate, Ranked, rank, with_network, with_network_times
from nearmesh.routing.times import Times

__all__ = [
    "DEFAULT_DEADLINE_MS",
    "DEFAULT_OBJECTIVE",
    "HYSTERESIS",
    "IN_TIME",
    "OBJECTIVES",
    "OBJECTIVE_HEADER",
    "Candidate",
    "Objective",
    "Ranked",
    "Times",
    "format_usd",
    "parse_objective",
    "rank",
    "transfer_usd_per_1000",
    "usd_per_1000",
    "with_network",
    "with_network_times",
]
