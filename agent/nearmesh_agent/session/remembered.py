"""What a node remembers over a restart: what is wanted of it, and what served last of each model."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from google.protobuf.message import DecodeError

from nearmesh.tls import write_private
from nearmesh.v1 import node_pb2 as pb

log = logging.getLogger(__name__)

# Of each model, versions that served last and are remembered: the newest stands in for a wrong one after a restart, the
# one before it makes a rollback quick.
MOST = 2


class Remembered:
    """On one node's disk. A disk that refuses costs the memory, not the service."""

    def __init__(self, keep: Path) -> None:
        """`keep` is the wanted state's file; the other one lies beside it."""
        self._keep = keep
        self._keep_served = keep.with_name("served.pb")
        found = _read(keep)
        self.restored = found is not None
        # What the control plane said last.
        self.wanted = found or pb.WantedState()
        # The disk refused it; the next wish is written whether it changes anything or not.
        self._unsaved = False
        # By model, the newest last.
        self._served: dict[str, list[pb.WantedVersion]] = {}
        for version in (_read(self._keep_served) or pb.WantedState()).versions:
            self._served.setdefault(version.model, []).append(version)

    def want(self, state: pb.WantedState) -> None:
        """Takes over a wanted state, so that a restart needs no control plane."""
        changed = _to_keep(state) != _to_keep(self.wanted)
        if changed or self._unsaved:
            self._unsaved = not _kept(self._keep, state)
        self.wanted = state

    def serves(self, version: pb.WantedVersion) -> None:
        """It is the standing version of its model now."""
        (version,) = _lasting([version])
        known = self._served.get(version.model, [])
        if known and known[-1] == version:
            return
        latest = [*(other for other in known if other.digest != version.digest), version][-MOST:]
        served = {**self._served, version.model: latest}
        if _kept(self._keep_served, pb.WantedState(versions=chain.from_iterable(served.values()))):
            self._served = served

    def served(self, model: str) -> list[pb.WantedVersion]:
        """What served last of a model, the newest first."""
        return self._served.get(model, [])[::-1]

    def digests(self) -> set[str]:
        """Of all that is remembered."""
        return {version.digest for version in chain(self.wanted.versions, *self._served.values())}


def _to_keep(state: pb.WantedState) -> tuple[object, ...]:
    """What a restart without the control plane must know."""
    vector_nodes = list(state.vector_nodes)
    return _lasting(state.versions), list(state.removed_nodes), list(state.model_keys_pem), vector_nodes


def _lasting(versions: Iterable[pb.WantedVersion]) -> list[pb.WantedVersion]:
    """Without who else has them: that changes all the time, and is no news to a disk."""
    found = []
    for version in versions:
        copy = pb.WantedVersion()
        copy.CopyFrom(version)
        copy.ClearField("holders")
        found.append(copy)
    return found


def _read(path: Path) -> pb.WantedState | None:
    try:
        return pb.WantedState.FromString(path.read_bytes())
    except FileNotFoundError:
        return None
    except DecodeError:
        log.warning("%s is damaged and will be written anew", path)
        return None


def _kept(path: Path, state: pb.WantedState) -> bool:
    try:
        write_private(path, state.SerializeToString())
    except OSError as error:
        log.warning("%s cannot be written, a restart would begin with what was there before: %s", path, error)
        return False
    return True
