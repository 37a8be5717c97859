"""Which replicas this node has, and which of them answers a request that names a model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator

from nearmesh.errors import NotFound, NotReady
from nearmesh_agent.serving.replica import Replica


class ReplicaTable:
    """Replicas by model, by version and by digest. Every change is one step, seen whole by the next request.

    The table closes nothing: whoever takes a replica out of it closes it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By digest: when a request named the version last.
        self._named_s: dict[str, float] = {}
        self._serving: dict[str, Replica] = {}
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
        """Makes `replica` the serving one of its model; returns the one that it takes over from.

        That one still answers those who name its version, until `remove`, and its sequences until it is closed.
        """
        before = self._serving.get(replica.name)
        self._by_digest[replica.digest] = replica
        self._serving[replica.name] = replica
        return before if before is not replica else None

    def remove(self, digest: str) -> Replica | None:
        """Takes a replica out, if it is there, and returns it; what it had accepted goes on."""
        replica = self._by_digest.pop(digest, None)
        self._named_s.pop(digest, None)
        if replica is not None and self._serving.get(replica.name) is replica:
            del self._serving[replica.name]
        return replica

    def get(self, model: str, version: str = "") -> Replica:
        """The replica that answers; version "" is the serving one. Raises NotFound or NotReady."""
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

    def serving(self, replica: Replica) -> bool:
        """Whether it answers requests that name no version."""
        return self._serving.get(replica.name) is replica

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._by_digest.values()))

    def __len__(self) -> int:
        return len(self._by_digest)

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
