"""What an app gets back: arrays by name, and the receipt that says who answered, how fast, for how much, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from nearmesh.client.picker import Choice, Route
from nearmesh.routing import Times, format_usd
from nearmesh.tensors import Array

# Asks the node for its half of the receipt; the node's answers stand in the response's parameters under these names.
ASK = "nearmesh_receipt"
SITE, NODE, REGION = "nearmesh_site", "nearmesh_node", "nearmesh_region"
DIGEST, VARIANT, RUN = "nearmesh_digest", "nearmesh_variant", "nearmesh_run"
QUEUE_MS, COMPUTE_MS, SERVICE_MS = "nearmesh_queue_ms", "nearmesh_compute_ms", "nearmesh_service_ms"
# The reason of an error that came on a stream.
REASON = "nearmesh_reason"

# What ended an attempt that did not end by itself.
OVERTAKEN = "silent; another node answered first"
BESIDE = "asked beside; another node answered first"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One node that was asked. `error` is empty for the one that answered."""

    node: str
    error: str
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What was forecast of the node that answered, as the choice was made; milliseconds."""

    network_ms_p50: float
    network_ms_p95: float
    network_ms_p99: float
    # On the node: waiting for the engine, and in it.
    service_ms_p50: float
    service_ms_p95: float
    service_ms_p99: float
    # From the request's leaving to its answer, with what its size adds.
    total_ms_p50: float
    total_ms_p95: float
    total_ms_p99: float
    # The chance to answer within the model's deadline.
    p_in_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Why a request went where it went, and how long it took. Times in milliseconds."""

    site: str
    node: str
    region: str
    # Of the model version that answered, "sha256:...".
    digest: str
    variant: str
    # On the node: waiting for the engine, in the engine. 0 when the node did not say.
    queue_ms: float
    compute_ms: float
    # Of the answering attempt: its time less the node's own.
    network_ms: float
    # As the caller saw it, failed attempts included.
    total_ms: float
    usd_per_1000: float
    # Why this node was chosen.
    why: str
    # The 95th percentiles that the choice was made with.
    predicted_network_ms: float
    predicted_total_ms: float
    # The whole forecast.
    prediction: Prediction
    # The part of this region's requests that the control plane places on the node; 0: it is there if others fail.
    share: float = 0.0
    # A second node was asked because the first one took longer than its forecast 95th percentile.
    hedged: bool = False
    attempts: tuple[Attempt, ...] = ()
    # The federated run that made the version; empty: none did.
    run: str = ""

    def __str__(self) -> str:
        failed = [f"{a.node}: {a.error}" for a in self.attempts if a.error not in ("", BESIDE)]
        after = f"; after {'; '.join(failed)}" if failed else ""
        return (
            f"{self.node} ({self.region}) in {self.total_ms:.1f} ms, of which {self.network_ms:.1f} network, "
            f"${format_usd(self.usd_per_1000)} per 1,000; {self.why}{after}"
        )


class Answer(Mapping[str, Array]):
    """The outputs by name, read-only arrays, with `model`, `version` and `receipt`."""

    def __init__(self, outputs: Mapping[str, Array], *, model: str, version: str, receipt: Receipt) -> None:
        self._outputs = dict(outputs)
        self.model = model
        self.version = version
        self.receipt = receipt

    def __getitem__(self, name: str) -> Array:
        return self._outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in self._outputs.items())
        return f"Answer({shapes}; {self.receipt})"


def answer(
    response: service_pb2.ModelInferResponse,
    outputs: Mapping[str, Array],
    choice: Choice,
    route: Route,
    *,
    forecast: Times,
    attempt_ms: float,
    total_ms: float,
    attempts: tuple[Attempt, ...],
    hedged: bool = False,
) -> Answer:
    """Joins a node's response with the decision that led to it."""
    says = parameters(response)
    candidate = choice.endpoint.candidate
    receipt = Receipt(
        site=str(says.get(SITE, candidate.site)),
        node=str(says.get(NODE, candidate.node)),
        region=str(says.get(REGION, candidate.region)),
        digest=str(says.get(DIGEST, route.digest)),
        variant=str(says.get(VARIANT, "")),
        queue_ms=float(says.get(QUEUE_MS, 0.0)),
        compute_ms=float(says.get(COMPUTE_MS, 0.0)),
        network_ms=max(0.0, attempt_ms - float(says.get(SERVICE_MS, 0.0))),
        total_ms=total_ms,
        usd_per_1000=candidate.usd_per_1000,
        why=_why(choice, attempts) if hedged else choice.why,
        predicted_network_ms=candidate.network_ms_p95,
        predicted_total_ms=forecast.p95_ms,
        prediction=_prediction(candidate.network, candidate.service, forecast, candidate.p_in_time(route.deadline_ms)),
        share=candidate.share,
        hedged=hedged,
        attempts=attempts,
        run=str(says.get(RUN, "")),
    )
    return Answer(outputs, model=response.model_name, version=response.model_version, receipt=receipt)


def _why(choice: Choice, attempts: Iterable[Attempt]) -> str:
    """A hedge that won was chosen for being soonest; the rule's word on it would not explain that."""
    late = [attempt.node for attempt in attempts if attempt.error == OVERTAKEN]
    return f"hedged: {late[0]} took longer than 95 % of its calls do; {choice.why}" if late else choice.why


def _prediction(network: Times, service: Times, total: Times, p_in_time: float) -> Prediction:
    return Prediction(
        network_ms_p50=network.p50_ms,
        network_ms_p95=network.p95_ms,
        network_ms_p99=network.p99_ms,
        service_ms_p50=service.p50_ms,
        service_ms_p95=service.p95_ms,
        service_ms_p99=service.p99_ms,
        total_ms_p50=total.p50_ms,
        total_ms_p95=total.p95_ms,
        total_ms_p99=total.p99_ms,
        p_in_time=p_in_time,
    )


def parameters(response: service_pb2.ModelInferResponse) -> dict[str, Any]:
    """The response's parameters as plain values."""
    found: dict[str, Any] = {}
    for name, parameter in response.parameters.items():
        which = parameter.WhichOneof("parameter_choice")
        if which:
            found[name] = getattr(parameter, which)
    return found


def network_ms(response: service_pb2.ModelInferResponse, attempt_ms: float) -> float | None:
    """The attempt's time less the node's own; None when the node did not say what its own was."""
    service_ms = parameters(response).get(SERVICE_MS)
    return None if service_ms is None else max(0.0, attempt_ms - float(service_ms))
