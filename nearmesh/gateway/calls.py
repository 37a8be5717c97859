"""What a gateway's calls came to: Envoy's access log in, sums by model, objective and node out. Pure.

Only unary inference has a time that means something; what a caller got wrong or broke off counts for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nearmesh.rpc import NODE_KEY
from nearmesh.v1 import route_pb2

INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"
STATUS_KEY = "grpc-status"

# gRPC's numbers of the statuses that are a node's fault, or the way's: UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED,
# ABORTED, INTERNAL, UNAVAILABLE and DATA_LOSS.
_OK, _FAULTS = "0", frozenset({"2", "4", "8", "10", "13", "14", "15"})

# Between two reports; what is more is not counted.
MAX_KEYS = 5_000

# The node at an upstream address (host:port), or None.
Locate = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Ended:
    """One call that is over."""

    model: str
    objective: str
    # Empty when it is not known, as of a call that reached none.
    node: str
    answered: bool
    total_ms: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the control plane expects of one model and objective from here, milliseconds."""

    deadline_ms: float
    # The 50th, 95th and 99th percentile of the whole time, by node.
    quantiles_ms: Mapping[str, tuple[float, float, float]]

    @classmethod
    def of(cls, route: route_pb2.Route) -> Prediction:
        """From a route; candidates without a prediction are left out."""
        found = {c.node: (c.total_ms_p50, c.total_ms_p95, c.total_ms_p99) for c in route.candidates if c.total_ms_p50}
        return cls(route.deadline_ms, found)


def ended(entry: Any, locate: Locate) -> Ended | None:
    """An `envoy.data.accesslog.v3.HTTPAccessLogEntry` as a call, or None when it counts for nobody."""
    common, response = entry.common_properties, entry.response
    # MODEL, MODEL/OBJECTIVE, or MODEL/OBJECTIVE/ and what else there is to say.
    model, _, more = common.upstream_cluster.partition("/")
    objective = more.partition("/")[0]
    if entry.request.path != INFER_PATH or not model or model.startswith("_"):
        return None
    status = response.response_trailers.get(STATUS_KEY) or response.response_headers.get(STATUS_KEY, "")
    gone = common.response_flags.downstream_connection_termination or common.response_flags.downstream_remote_reset
    if gone or (status != _OK and status not in _FAULTS):
        return None
    address = common.upstream_remote_address.socket_address
    node = response.response_headers.get(NODE_KEY) or locate(f"{address.address}:{address.port_value}")
    took = (
        common.time_to_last_downstream_tx_byte
        if common.HasField("time_to_last_downstream_tx_byte")
        else common.duration
    )
    return Ended(model, objective, node or "", status == _OK, took.ToTimedelta().total_seconds() * 1000)


class CallTally:
    """Sums since the last report, of a bounded number of kinds."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str, str], route_pb2.CallReport] = {}
        # Calls that were one kind too many.
        self.passed_over = 0

    def add(self, call: Ended, expected: Prediction | None) -> None:
        """Counts one call; beside what was expected, if anything was."""
        key = (call.model, call.objective, call.node)
        found = self._sums.get(key)
        if found is None:
            if len(self._sums) >= MAX_KEYS:
                self.passed_over += 1
                return
            found = self._sums[key] = route_pb2.CallReport(model=call.model, objective=call.objective, node=call.node)
        if not call.answered:
            found.failed += 1
            return
        found.answered += 1
        found.total_ms += call.total_ms
        if expected:
            _compare(found, call, expected)

    def take(self) -> list[route_pb2.CallReport]:
        """The sums since the last time this was asked."""
        taken, self._sums = self._sums, {}
        return list(taken.values())


def _compare(found: route_pb2.CallReport, call: Ended, expected: Prediction) -> None:
    found.late += call.total_ms > expected.deadline_ms
    quantiles = expected.quantiles_ms.get(call.node)
    if quantiles:
        p50, p95, p99 = quantiles
        found.compared += 1
        found.predicted_ms += p50
        found.within_p50 += call.total_ms <= p50
        found.within_p95 += call.total_ms <= p95
        found.within_p99 += call.total_ms <= p99
