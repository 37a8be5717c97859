"""Envoy's access log as calls, and calls as sums: whose fault it was, where it went, and within bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.data.accesslog.v3 import accesslog_pb2

from nearmesh.gateway import calls as module
from nearmesh.gateway.access_log import MAX_PATH_BYTES, socket_path
from nearmesh.gateway.calls import CallTally, Ended, Prediction, ended
from nearmesh.gateway.predictions import MAX_KEPT, REFRESH_S, Predictions
from nearmesh.v1 import route_pb2

ADDRESSES = {"10.0.0.7:8003": "seven"}


def entry(
    *,
    path: str = module.INFER_PATH,
    cluster: str = "m",
    status: str = "0",
    node: str = "n",
    trailers: bool = True,
    flag: str = "",
    took_ms: float = 12.5,
) -> Any:
    made = accesslog_pb2.HTTPAccessLogEntry()
    made.request.path = path
    common = made.common_properties
    common.upstream_cluster = cluster
    common.upstream_remote_address.socket_address.address = "10.0.0.7"
    common.upstream_remote_address.socket_address.port_value = 8003
    common.duration.FromMicroseconds(round(took_ms * 1000))
    if flag:
        setattr(common.response_flags, flag, True)
    if node:
        made.response.response_headers["nearmesh-node"] = node
    if status:
        (made.response.response_trailers if trailers else made.response.response_headers)["grpc-status"] = status
    return made


def read(**fields: Any) -> Ended | None:
    return ended(entry(**fields), ADDRESSES.get)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Ended("m", "", "n", True, 12.5)),
        ({"cluster": "m/nearest"}, Ended("m", "nearest", "n", True, 12.5)),
        ({"cluster": "m/nearest/sequences"}, Ended("m", "nearest", "n", True, 12.5)),
        ({"status": "14", "trailers": False}, Ended("m", "", "n", False, 12.5)),
        # A node that died said nothing of itself.
        ({"status": "14", "node": ""}, Ended("m", "", "seven", False, 12.5)),
        ({"status": "8"}, Ended("m", "", "n", False, 12.5)),
    ],
)
def test_a_call_that_counts(fields: dict[str, Any], expected: Ended) -> None:
    assert read(**fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "/inference.GRPCInferenceService/ModelStreamInfer"},
        {"path": "/inference.GRPCInferenceService/ServerLive", "cluster": "_nearest"},
        {"cluster": "_nearest"},
        {"cluster": ""},
        {"status": ""},
        *({"status": str(code.value[0])} for code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)),
        *({"status": str(code.value[0])} for code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAUTHENTICATED)),
        {"flag": "downstream_connection_termination", "status": "14"},
        {"flag": "downstream_remote_reset"},
    ],
    ids=str,
)
def test_what_counts_for_nobody(fields: dict[str, Any]) -> None:
    assert read(**fields) is None


def test_an_address_that_is_no_nodes() -> None:
    found = ended(entry(node="", status="14"), lambda address: None)
    assert found == Ended("m", "", "", False, 12.5)


def test_sums_beside_what_was_expected() -> None:
    tally = CallTally()
    expected = Prediction(100.0, {"n": (10.0, 50.0, 90.0)})
    for took_ms in (8.0, 20.0, 70.0, 95.0, 120.0):
        tally.add(Ended("m", "", "n", True, took_ms), expected)
    tally.add(Ended("m", "", "n", False, 1.0), expected)
    # Of a node that the prediction does not know, only lateness is known.
    tally.add(Ended("m", "", "other", True, 120.0), expected)
    tally.add(Ended("m", "nearest", "n", True, 5.0), None)
    first, second, third = tally.take()
    assert (first.answered, first.failed, first.late, first.total_ms) == (5, 1, 1, pytest.approx(313.0))
    assert (first.within_p50, first.within_p95, first.within_p99, first.predicted_ms) == (1, 2, 3, 50.0)
    assert first.compared == first.answered
    assert (second.node, second.late, second.within_p99, second.predicted_ms) == ("other", 1, 0, 0.0)
    assert (third.objective, third.answered, third.late) == ("nearest", 1, 0)
    assert tally.take() == []


def test_kinds_of_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    tally = CallTally()
    for number in range(10):
        tally.add(Ended(f"m{number}", "", "n", True, 1.0), None)
    assert len(tally.take()) == 3 and tally.passed_over == 7
    tally.add(Ended("m9", "", "n", True, 1.0), None)
    assert len(tally.take()) == 1


class Routes:
    """Answers Resolve, or is away."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.away = False

    async def Resolve(self, request: route_pb2.ResolveRequest, timeout: float) -> route_pb2.Route:
        self.asked.append((request.model, request.objective))
        if self.away:
            raise grpc.RpcError
        found = [route_pb2.Candidate(node="n", total_ms_p50=1.0, total_ms_p95=2.0, total_ms_p99=3.0)]
        return route_pb2.Route(deadline_ms=200.0, candidates=[*found, route_pb2.Candidate(node="old")])


async def test_predictions_are_fetched_for_what_is_called_and_anew_as_they_age() -> None:
    now_s, routes = 0.0, Routes()
    predictions = Predictions("r", lambda: now_s)
    stub: Any = routes
    await predictions.refresh(stub)
    assert predictions.get("m", "nearest") is None and routes.asked == []
    await predictions.refresh(stub)
    assert predictions.get("m", "nearest") == Prediction(200.0, {"n": (1.0, 2.0, 3.0)})
    await predictions.refresh(stub)
    assert routes.asked == [("m", "nearest")], "it is young"
    now_s = REFRESH_S + 1
    routes.away = True
    assert predictions.get("m", "nearest") is not None
    await predictions.refresh(stub)
    assert predictions.get("m", "nearest") is not None, "an old one is better than none"
    assert len(routes.asked) == 2


async def test_predictions_are_bounded_whatever_is_asked() -> None:
    predictions, routes = Predictions("r", lambda: 0.0), Routes()
    for number in range(2 * MAX_KEPT):
        predictions.get(f"m{number}", "")
    stub: Any = routes
    for _ in range(200):
        await predictions.refresh(stub)
    assert len(routes.asked) == MAX_KEPT


def test_the_socket_is_in_the_gateways_folder_unless_its_path_is_too_long(tmp_path: Path) -> None:
    with socket_path(Path("short")) as path:
        assert path == Path("short").resolve() / "calls.sock" or len(str(path)) <= MAX_PATH_BYTES
    with socket_path(tmp_path / ("x" * 200)) as path:
        assert len(str(path).encode()) <= MAX_PATH_BYTES
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()
