"""A client in one region, as a process of its own: asks every model through every way in and checks the answers.

`python -m nearmesh.devmesh.visitor REGION MESH_JSON [OBJECTIVE]` prints one JSON object a row. A process for
each region, since a gRPC bootstrap is per process.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from nearmesh import addresses
from nearmesh.client.bootstrap import read_bootstrap
from nearmesh.devmesh.samples import (
    Sample,
    SequenceSample,
    WrongAnswer,
    file_type_samples,
    text_detector_sample,
    text_recognizer_samples,
    voice_activity_sequence,
)
from nearmesh.devmesh.ways import WAYS, Reply, Way
from nearmesh.v1 import route_pb2, route_pb2_grpc

# The first call through a way opens connections; the table shows what the second one took.
CALLS = 2
TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. Times in milliseconds; a sequence's are medians over its calls."""

    region: str
    way: str
    model: str
    site: str = ""
    network_ms: float = 0.0
    total_ms: float = 0.0
    usd_per_1000: float = 0.0
    why: str = ""
    # The answer in words, or what was wrong with it.
    answer: str = ""
    correct: bool = False


def visit(region: str, gateway: str, bootstrap: Path, objective: str = "") -> Iterator[Row]:
    """Every row of one client region; without an objective each model's own policy decides."""
    explain = _explainer(bootstrap, region, objective)
    for name, make in WAYS.items():
        way = make(gateway, bootstrap)
        try:
            for sample in samples():
                yield _row(region, name, _Asking(way, objective), sample, explain)
        finally:
            way.close()


def samples() -> list[Sample | SequenceSample]:
    """One sample for each model, in the order in which they are shown."""
    return [file_type_samples()[0], text_detector_sample(), text_recognizer_samples()[0], voice_activity_sequence()]


Explain = Callable[[str, str], tuple[float, str]]


def _row(region: str, name: str, asking: _Asking, sample: Sample | SequenceSample, explain: Explain) -> Row:
    try:
        replies, answer = asking.ask(sample)
    except WrongAnswer as wrong:
        return Row(region=region, way=name, model=sample.model, answer=f"wrong: {wrong}")
    except Exception as error:  # noqa: BLE001  # whatever a client library raises is a row that is not right
        return Row(region=region, way=name, model=sample.model, answer=f"{type(error).__name__}: {error}")
    usd_per_1000, why = explain(sample.model, replies[-1].node)
    return Row(
        region=region,
        way=name,
        model=sample.model,
        site=replies[-1].site,
        network_ms=statistics.median(reply.network_ms for reply in replies),
        total_ms=statistics.median(reply.total_ms for reply in replies),
        usd_per_1000=usd_per_1000,
        why=why,
        answer=answer,
        correct=True,
    )


@dataclass(frozen=True, slots=True)
class _Asking:
    way: Way
    objective: str

    def ask(self, sample: Sample | SequenceSample) -> tuple[Sequence[Reply], str]:
        """The replies that count for the times, and the answer in words. Raises WrongAnswer."""
        if isinstance(sample, SequenceSample):
            self.way.sequence(sample.model, sample.calls[:1], objective=self.objective, timeout_s=TIMEOUT_S)
            replies = self.way.sequence(sample.model, sample.calls, objective=self.objective, timeout_s=TIMEOUT_S)
            return replies, sample.check([reply.outputs for reply in replies])
        answer = ""
        for _ in range(CALLS):
            reply = self.way.infer(sample.model, sample.inputs, objective=self.objective, timeout_s=TIMEOUT_S)
            answer = sample.check(reply.outputs)
        return [reply], answer


def _explainer(bootstrap: Path, region: str, objective: str) -> Explain:
    """Asks for the price of a node and why it was, or was not, the choice: the control plane, and without it a node."""
    settings = read_bootstrap(bootstrap)
    credentials = grpc.ssl_channel_credentials(settings.ca_pem)
    metadata = [("authorization", f"Bearer {settings.token}")]
    servers = [*addresses.several(settings.control_plane), *settings.fallbacks]

    def explain(model: str, node: str) -> tuple[float, str]:
        request = route_pb2.ResolveRequest(model=model, region=region, objective=objective)
        route = asked(request)
        found = (candidate for candidate in route.candidates if candidate.node == node)
        return next(((one.usd_per_1000, one.why) for one in found), (math.nan, "not among the routes that are known"))

    def asked(request: route_pb2.ResolveRequest) -> route_pb2.Route:
        for server in list(servers):
            with grpc.secure_channel(server, credentials) as channel:
                stub = route_pb2_grpc.RouteServiceStub(channel)
                try:
                    found: route_pb2.Route = stub.Explain(request, metadata=metadata, timeout=TIMEOUT_S)
                    return found
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or server == servers[-1]:
                        raise
                    # Asked last from now on.
                    servers.append(servers.pop(servers.index(server)))
        raise AssertionError("a bootstrap file names a server")

    return explain


def main() -> None:
    region, state_path, *rest = sys.argv[1:]
    state: Mapping[str, Any] = json.loads(Path(state_path).read_text())
    bootstrap = Path(state["bootstrap"][region])
    os.environ["GRPC_XDS_BOOTSTRAP"] = str(bootstrap)
    for row in visit(region, state["gateways"][region]["address"], bootstrap, *rest):
        sys.stdout.write(json.dumps(asdict(row)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
