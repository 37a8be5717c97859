"""Which replicas this node has, and which of them answers a request that names a model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator

from nearmesh.errors import NotFound, NotReady
from nearmesh.v1 import node_pb2 as pb
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.trial import Trial


class ReplicaTable:
    """Replicas by model, by version and by digest. Every change is one step, seen whole by the next request.

    The table closes nothing: whoever takes a replica out of it closes it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By digest: when a request named the version last.
        self._named_s: dict[str, float] = {}
        # By model: the standing version, and one that is on trial beside it.
        self._serving: dict[str, Replica] = {}
        self._trials: dict[str, Trial] = {}
        self._by_digest: dict[str, Replica] = {}
        # Models that this node is to serve and does not yet, with why.
        self._expected: dict[str, str] = {}

    def expect(self, model: str, why: str) -> None:
        """Says that `model` is to come, so that asking for it is NotReady ("... is WHY") rather than NotFound."""
        self._expected[model] = why

    def forget(self, model: str) -> None:
        """Takes back `expect`."""
        self._expected.pop(model, None)

    def put(self, replica: Replica) -> Replica | None:
        """Makes `replica` the standing one of its model, from a trial or not; returns the one that it takes over from.

        That one still answers those who name its version, until `remove`, and its sequences until it is closed.
        """
        self._end_trial(replica)
        before = self._serving.get(replica.name)
        self._by_digest[replica.digest] = replica
        self._serving[replica.name] = replica
        return before if before is not replica else None

    def try_out(self, replica: Replica, wanted: pb.Trial) -> None:
        """Puts `replica` on trial beside the standing version of its model, or changes what it gets there."""
        trial = self._trials.get(replica.name)
        if trial is None or trial.replica is not replica:
            if trial:
                trial.replica.on_trial = False
            trial = self._trials[replica.name] = Trial(replica)
            replica.on_trial = True
            self._by_digest[replica.digest] = replica
        trial.change(wanted)

    def trial_beside(self, replica: Replica) -> Trial | None:
        """What is on trial beside `replica`, if that one is standing."""
        trial = self._trials.get(replica.name)
        return trial if trial and self._serving.get(replica.name) is replica else None

    def remove(self, digest: str) -> Replica | None:
        """Takes a replica out, if it is there, and returns it; what it had accepted goes on."""
        replica = self._by_digest.pop(digest, None)
        self._named_s.pop(digest, None)
        if replica is not None and self._serving.get(replica.name) is replica:
            del self._serving[replica.name]
        if replica is not None:
            self._end_trial(replica)
        return replica

    def get(self, model: str, version: str = "") -> Replica:
        """The replica that answers; version "" is the standing one. Raises NotFound or NotReady."""
        found = self._serving.get(model) if not version else self._of_version(model, version)
        if found is None:
            raise self._absent(model, version)
        if version:
            self._named_s[found.digest] = self._clock()
        return found

    def named_s_ago(self, digest: str) -> float:
        """How long ago a request named this version; infinite if none did."""
        return self._clock() - self._named_s.get(digest, -math.inf)

    def by_digest(self, digest: str) -> Replica | None:
        return self._by_digest.get(digest)

    def standing(self, model: str) -> Replica | None:
        """Which version of the model answers requests that name none; None before there is one."""
        return self._serving.get(model)

    def serving(self, replica: Replica) -> bool:
        """Whether it is the standing one of its model."""
        return self._serving.get(replica.name) is replica

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._by_digest.values()))

    def __len__(self) -> int:
        return len(self._by_digest)

    def _end_trial(self, replica: Replica) -> None:
        trial = self._trials.get(replica.name)
        if trial and trial.replica is replica:
            del self._trials[replica.name]
        replica.on_trial = False

    def _of_version(self, model: str, version: str) -> Replica | None:
        serving = self._serving.get(model)
        if serving is not None and serving.version == version:
            return serving
        return next((r for r in reversed(self._by_digest.values()) if (r.name, r.version) == (model, version)), None)

    def _absent(self, model: str, version: str) -> NotFound | NotReady:
        versions = [replica.version for replica in self if replica.name == model]
        if versions and version:
            return NotFound(f"model {model!r} has no version {version!r} on this node; it has {_listed(versions)}")
        if model in self._expected:
            return NotReady(f"model {model!r} is {self._expected[model]} on this node; another node may serve it")
        if versions:
            return NotReady(f"model {model!r} is being unloaded from this node; another node may serve it")
        return NotFound(f"no model {model!r} on this node; it has {_listed(self._serving) or 'none yet'}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(set(names))))
