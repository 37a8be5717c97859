"""What is known of one node that a rollout concerns, at one moment. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from nearmesh.errors import DeadlineExceeded, NotFound, NotLeader, NotReady, Overloaded, StorageFull, Unreachable
from nearmesh.v1 import node_pb2 as pb

# A version that could not be had is tried again by the node itself: the registry is away, the disk is full. These are
# no verdict on the version; a node that never gets over it is left out.
PASSING = (
    *(kind.reason for kind in (Unreachable, NotFound, NotReady, StorageFull, NotLeader, Overloaded, DeadlineExceeded)),
    # What a disk refuses otherwise.
    "STORAGE",
)

NOTHING = pb.ReplicaStatus()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One node of the rollout's scope."""

    node: str
    site: str = ""
    # It is there, or was a moment ago, and stays: what it makes of the version is waited for.
    expected: bool = True
    # Its session is open: what it says is of now.
    live: bool = True
    # Digest of what the catalog wants of it, whatever the rollout is at; empty: nothing of this model.
    standing: str = ""
    # What it says of the new version and of the standing one; `NOTHING` where it says nothing.
    new: pb.ReplicaStatus = field(default_factory=pb.ReplicaStatus)
    old: pb.ReplicaStatus = field(default_factory=pb.ReplicaStatus)
    # The 95th percentile of the standing version's service time there, as last known, milliseconds; 0: nobody knows.
    standing_ms: float = 0.0
    # It has come no further for so long, by state or by byte. Seconds.
    still_s: float = 0.0
    # For how long its session has been away without a word, of a node that was there before. Seconds.
    lost_s: float = 0.0

    @property
    def serves_new(self) -> bool:
        """It answers with the new version whoever names none."""
        return self.new.state == pb.REPLICA_STATE_READY and not self.new.on_trial

    @property
    def settled_new(self) -> bool:
        """There is nothing more to wait for. What an operator has taken out of memory stays out."""
        return self.serves_new or (self.new.state == pb.REPLICA_STATE_UNLOADED and not self.new.on_trial)

    @property
    def loaded_new(self) -> bool:
        return self.new.state in (pb.REPLICA_STATE_READY, pb.REPLICA_STATE_UNLOADED)

    @property
    def refused(self) -> str:
        """Why the node will not serve the new version; empty where it may yet."""
        if self.new.state != pb.REPLICA_STATE_FAILED:
            return ""
        detail = self.new.detail or "the node gave no reason"
        return "" if detail.partition(":")[0] in PASSING else detail

    @property
    def without_new(self) -> bool:
        """The new version is gone from it, or on its way out."""
        return self.new.state in (
            pb.REPLICA_STATE_UNSPECIFIED,
            pb.REPLICA_STATE_UNLOADING,
            pb.REPLICA_STATE_FAILED,
        )

    @property
    def serves_old(self) -> bool:
        """It answers with its standing version, if it has one."""
        served = self.old.state in (pb.REPLICA_STATE_READY, pb.REPLICA_STATE_UNLOADED)
        return not self.standing or (served and not self.old.on_trial)
