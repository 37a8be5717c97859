"""What nodes say of their replicas, as facts: how long one takes, how many it answers, what a request moves.

A report may hold anything, also what is no number. Whatever it holds, what comes of it is finite and within bounds: one
node's nonsense must not become a plan for all, or none. What is unknown or cannot be never looks better than what is
measured. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from nearmesh.routing import Times
from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.registry.node import Node
from nearmesh_controlplane.registry.nodes import READY
from nearmesh_controlplane.routing.facts import LEAST_PER_S, ReplicaFacts

# Parts by which a measurement has to differ before it is another one.
NOTICEABLE = 0.03
NOTICEABLE_MS = 0.2
# What is not known of a replica's times: long enough not to be preferred.
UNKNOWN_MS = (1000.0, 3000.0)
# Nothing that is worth waiting for takes longer; what does counts as this.
MAX_MS = 3_600_000.0
# More than any machine does. Outside of this and LEAST_PER_S a cost would be next to nothing, or hide all others.
MAX_PER_S = 1e6
# More than any message that is served.
MAX_MEAN_BYTES = 2**30


def words(replica: pb.ReplicaStatus, per_s: float, extra_ms: float) -> tuple[object, ...]:
    """All that `replica_facts` goes by: it is worked out again only when some of it is another."""
    return (
        tuple(replica.service_ms_quantiles) or (replica.service_ms_p50, replica.service_ms_p95),
        tuple(replica.queue_ms_quantiles),
        per_s,
        _load_ms(replica),
        # To a millisecond: it drifts with every report.
        round(extra_ms),
    )


def replica_facts(replica: pb.ReplicaStatus, per_s: float, extra_ms: float = 0.0) -> ReplicaFacts:
    """`per_s` is that of `speeds`, 0 when unknown; `extra_ms` what gateways saw beyond what it says."""
    whole = _bounded(_later(claimed(replica), extra_ms))
    queue = Times.of(replica.queue_ms_quantiles)
    queue = _bounded(queue) if queue else None
    return ReplicaFacts(
        service=_without(whole, queue) if queue else whole, queue=queue, per_s=per_s, load_ms=_load_ms(replica)
    )


def claimed(replica: pb.ReplicaStatus) -> Times:
    """How long a call takes on the node, waiting included, as it says."""
    return _bounded(Times.of(replica.service_ms_quantiles) or _from_two(replica))


def same(a: ReplicaFacts, b: ReplicaFacts) -> bool:
    """Whether the difference is too small to plan anew for."""
    if (a.queue is None) != (b.queue is None) or a.load_ms != b.load_ms:
        return False
    if a.queue and b.queue and not alike(a.queue, b.queue):
        return False
    return alike(a.service, b.service) and abs(a.per_s - b.per_s) <= NOTICEABLE * a.per_s


def alike(a: Times, b: Times) -> bool:
    """Whether they differ by no noticeable part."""
    return all(abs(x - y) <= max(NOTICEABLE_MS, NOTICEABLE * x) for x, y in zip(a.ms, b.ms, strict=True))


def speeds(nodes: Iterable[Node], said: Mapping[str, list[pb.ReplicaStatus]]) -> dict[tuple[str, str], float]:
    """Inferences per second of a model by hardware and variant: the median over like nodes.

    Twins are equally fast, so that a price decides between them and not whose stopwatch was disturbed.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for node in nodes:
        for replica in said.get(node.id, ()):
            per_s = replica.inferences_per_second
            if 0 < per_s < math.inf and replica.state == READY and not replica.on_trial:
                bounded = min(max(per_s, LEAST_PER_S), MAX_PER_S)
                found.setdefault((node.hardware, replica.variant), []).append(bounded)
    return {key: sorted(values)[len(values) // 2] for key, values in found.items()}


def usual_bytes(replicas: Iterable[pb.ReplicaStatus]) -> tuple[float, float] | None:
    """The means of requests and of answers; an agent that does not count bytes says nothing of them."""
    answered = bytes_in = bytes_out = 0
    for replica in replicas:
        if replica.bytes_in:
            most = replica.answered * MAX_MEAN_BYTES
            answered += replica.answered
            bytes_in += min(replica.bytes_in, most)
            bytes_out += min(replica.bytes_out, most)
    return (bytes_in / answered, bytes_out / answered) if answered else None


def _from_two(replica: pb.ReplicaStatus) -> Times:
    p50_ms, p95_ms = replica.service_ms_p50, replica.service_ms_p95
    if not (0 <= p50_ms < math.inf and 0 < p95_ms < math.inf):
        return Times.spread(*UNKNOWN_MS)
    # A median of nearly nothing would make the tail longer than any number.
    return Times.spread(min(p50_ms, MAX_MS) if p50_ms > 1e-3 else 0.0, min(p95_ms, MAX_MS))


def _load_ms(replica: pb.ReplicaStatus) -> float:
    if not replica.cold:
        return 0.0
    return replica.load_ms if 0 <= replica.load_ms <= MAX_MS else MAX_MS


def _bounded(times: Times) -> Times:
    return times if times.ms[-1] <= MAX_MS else Times(tuple(min(ms, MAX_MS) for ms in times.ms))


def _later(times: Times, ms: float) -> Times:
    return Times(tuple(found + ms for found in times.ms)) if ms > 0 else times


def _without(whole: Times, part: Times) -> Times:
    """What is left of a time without one of its parts, as if both were long together."""
    left = [max(0.0, w - p) for w, p in zip(whole.ms, part.ms, strict=True)]
    for at in range(1, len(left)):
        left[at] = max(left[at], left[at - 1])
    return Times(tuple(left))
