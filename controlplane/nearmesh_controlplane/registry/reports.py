"""What a node may say: bounded, since it is kept, written down and shown as it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from nearmesh.errors import InvalidInput
from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.prices.currencies import MAX_AMOUNT

# Of what a node says of its leaving; it is shown to operators.
MAX_NOTICE_CHARACTERS = 200
MAX_NOTICE_S = 86400.0
# Versions on one node, and what it says of one of them: it is kept, written down, and shown to operators.
MAX_REPLICAS = 1_000
MAX_DETAIL_CHARACTERS = 500
# Longer ago than this counts as just now: no node runs for so long.
MAX_IDLE_S = 1e10
# Of an address, a kind of machine, a digest and the like.
MAX_NAME_CHARACTERS = 255


def check_hello(hello: pb.NodeHello) -> None:
    """Raises InvalidInput."""
    _check_names(hello.public_address, hello.mesh_address, hello.metrics_address, hello.hardware, hello.agent_version)


def own_price(hello: pb.NodeHello) -> float | None:
    """What a node says that it costs, 0 when it names no price; None for what cannot be one."""
    given = hello.usd_per_hour
    if given <= 0:
        return 0.0
    # nan fails every comparison.
    return given if given < MAX_AMOUNT else None


def replicas_of(status: pb.NodeStatus) -> dict[str, pb.ReplicaStatus]:
    """By digest. Raises InvalidInput."""
    if len(status.replicas) > MAX_REPLICAS:
        raise InvalidInput(f"a report of {len(status.replicas)} replicas; at most {MAX_REPLICAS} are taken")
    for replica in status.replicas:
        _check_names(replica.model, replica.digest, replica.variant)
        replica.detail = replica.detail[:MAX_DETAIL_CHARACTERS]
        # nan fails every comparison.
        replica.idle_s = replica.idle_s if 0 <= replica.idle_s <= MAX_IDLE_S else 0.0
    return {replica.digest: replica for replica in status.replicas}


def held_of(status: pb.NodeStatus) -> frozenset[str]:
    """Digests of what lies on its disk. More than anybody has is cut, since nothing but speed depends on it."""
    return frozenset(digest for digest in status.held[:MAX_REPLICAS] if len(digest) <= MAX_NAME_CHARACTERS)


def heard_of_leaving(status: pb.NodeStatus) -> pb.NodeStatus:
    return pb.NodeStatus(
        notice=status.notice[:MAX_NOTICE_CHARACTERS],
        # A report may hold anything, also what is no number.
        notice_s=status.notice_s if 0 <= status.notice_s <= MAX_NOTICE_S else 0.0,
        in_flight=status.in_flight,
        sequences=status.sequences,
        drained=status.drained,
    )


def alike(new: Mapping[str, pb.ReplicaStatus], old: Mapping[str, pb.ReplicaStatus]) -> bool:
    """Whether a node says what it said before, but for how long its versions are idle, which `old` takes over: that
    grows all the time, and nothing is worked out from it."""
    for digest, replica in new.items():
        if digest in old:
            old[digest].idle_s = replica.idle_s
    return new == old


def durable(replicas: Mapping[str, pb.ReplicaStatus]) -> dict[str, tuple[int, str, bool]]:
    """What a restart must know of them; the rest is reported anew."""
    return {digest: (replica.state, replica.detail, replica.on_trial) for digest, replica in replicas.items()}


def _check_names(*names: str) -> None:
    for name in names:
        if len(name) > MAX_NAME_CHARACTERS:
            raise InvalidInput(f"{name[:20]!r}... has {len(name)} characters; at most {MAX_NAME_CHARACTERS} are taken")
