"""How far a node has come with each version, and what the control plane is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nearmesh.v1 import node_pb2 as pb
from nearmesh_agent.serving.orca import answered_and_failed
from nearmesh_agent.serving.replica import Replica


@dataclass(frozen=True, slots=True)
class _Stage:
    model: str
    state: pb.ReplicaState
    detail: str = ""


class Progress:
    """By digest, every version that the node has or is working on."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._stages: dict[str, _Stage] = {}
        self._on_change = on_change

    def set(self, digest: str, model: str, state: pb.ReplicaState, detail: str = "") -> None:
        self._stages[digest] = _Stage(model, state, detail)
        self._on_change()

    def drop(self, digest: str) -> None:
        """There is nothing more to say of it."""
        self._stages.pop(digest, None)
        self._on_change()

    def state(self, digest: str) -> pb.ReplicaState | None:
        stage = self._stages.get(digest)
        return stage.state if stage else None

    def model(self, digest: str) -> str:
        return self._stages[digest].model

    def of_model(self, model: str) -> list[str]:
        """The digests of its versions."""
        return [digest for digest, stage in self._stages.items() if stage.model == model]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._stages))

    def status(self, digest: str, replica: Replica | None, *, on_trial: bool) -> pb.ReplicaStatus:
        """What is reported of a version."""
        stage = self._stages[digest]
        status = pb.ReplicaStatus(
            model=stage.model, digest=digest, state=stage.state, detail=stage.detail, on_trial=on_trial
        )
        if replica:
            _measure(status, replica)
        return status


def _measure(status: pb.ReplicaStatus, replica: Replica) -> None:
    stats = replica.stats()
    status.variant, status.variant_why = replica.variant, replica.variant_why
    status.service_ms_p50, status.service_ms_p95 = stats.service.p50_ms, stats.service.p95_ms
    if stats.service.p50_ms:
        status.service_ms_quantiles.extend(stats.service.ms)
        status.queue_ms_quantiles.extend(stats.queue.ms)
    tally = replica.tally
    status.answered, status.failed = answered_and_failed(tally)
    status.bytes_in, status.bytes_out = tally.bytes_in, tally.bytes_out
    status.compared, status.agreed = tally.compared, tally.agreed
    status.inferences_per_second, status.in_flight = stats.inferences_per_second, stats.in_flight
    status.cold, status.load_ms, status.waiting = not replica.active, replica.load_s * 1000, replica.waiting
    status.idle_s = replica.idle_s
    if replica.unloaded and status.state == pb.REPLICA_STATE_READY:
        status.state, status.detail = pb.REPLICA_STATE_UNLOADED, "unloaded by an operator"
    elif not replica.ready and status.state == pb.REPLICA_STATE_READY:
        status.state, status.detail = pb.REPLICA_STATE_FAILED, replica.fault or "an engine call hangs"
