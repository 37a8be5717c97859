"""What nodes have for federated rounds, as they say in their sessions, and which node a SuperNode's key is of.

In memory alone: a node says it anew with each report. A node may only name the key of its own certificate, so that
nobody takes part under another's name.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from nearmesh.errors import InvalidInput
from nearmesh.ssh_keys import key_of, ssh_line
from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.registry.nodes import Registry

log = logging.getLogger(__name__)

# Models that one node has data for, and what it says in words: kept, and shown to operators.
MAX_MODELS = 1_000
MAX_NAME_CHARACTERS = 255
MAX_DETAIL_CHARACTERS = 500
# Nodes have come back to a control plane that was started again, and said who they are, after this long.
RETURN_S = 30.0


class Training:
    """Who takes part in federated rounds, and with what."""

    def __init__(self, registry: Registry, changes: Generation, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._changes = changes
        self._clock = clock
        self._began_at = clock()
        self._said: dict[str, pb.TrainingStatus] = {}
        self._node_of: dict[str, str] = {}
        # Why a node's word does not count; logged once, although it is said each second.
        self._refused: dict[str, str] = {}

    def heard(self, node_id: str, status: pb.NodeStatus, own_key: str) -> None:
        """Takes over what a node says with a report; `own_key` is its certificate's, as an OpenSSH line."""
        said = self._checked(node_id, status.training, own_key) if status.HasField("training") else None
        before = self._said.get(node_id)
        if said == before:
            return
        if said is None:
            self._said.pop(node_id, None)
        else:
            self._said[node_id] = said
        self._node_of = {one.public_key: node for node, one in self._said.items()}
        if before is None or said is None or _lasting(before) != _lasting(said):
            log.info("training node=%s models=%s", node_id, ",".join(said.models) if said else "not allowed any more")
            self._changes.bump()
        else:
            self._changes.drift()

    def status(self, node_id: str) -> pb.TrainingStatus | None:
        """What the node said last; None: its operator does not allow training, it was removed, or it is unknown."""
        return None if node_id in self._registry.removed_ids() else self._said.get(node_id)

    def node_of(self, key: str) -> str | None:
        """Whose SuperNode proves itself by this key (an OpenSSH line), if it may take part."""
        node = self._node_of.get(key)
        return None if node is None or node in self._registry.removed_ids() else node

    def _checked(self, node_id: str, said: pb.TrainingStatus, own_key: str) -> pb.TrainingStatus | None:
        """None where it does not count: the node serves all the same."""
        try:
            found = checked(said, own_key)
        except InvalidInput as error:
            if self._refused.get(node_id) != error.message:
                self._refused[node_id] = error.message
                log.warning("node=%s may not train: %s", node_id, error.message)
            return None
        self._refused.pop(node_id, None)
        return found

    @property
    def settled(self) -> bool:
        """Whoever is not known by now is not of the mesh, or does not train."""
        return self._clock() - self._began_at > RETURN_S


def checked(said: pb.TrainingStatus, own_key: str) -> pb.TrainingStatus:
    """What a node says, bounded. Raises InvalidInput where it names a key that is not its own."""
    if said.public_key != own_key and ssh_line(key_of(said.public_key)) != own_key:
        raise InvalidInput("its SuperNode's key is not the key of its certificate")
    return pb.TrainingStatus(
        models=sorted({model for model in said.models[:MAX_MODELS] if len(model) <= MAX_NAME_CHARACTERS}),
        public_key=own_key,
        running=said.running,
        paused=said.paused[:MAX_DETAIL_CHARACTERS],
        # nan fails every comparison.
        yielded_s=said.yielded_s if 0 <= said.yielded_s < math.inf else 0.0,
        cpu_share=said.cpu_share if 0 <= said.cpu_share < math.inf else 0.0,
        detail=said.detail[:MAX_DETAIL_CHARACTERS],
        own_apps=said.own_apps,
    )


def _lasting(said: pb.TrainingStatus) -> tuple[tuple[str, ...], str, bool, bool]:
    """What others act on; the rest is only shown."""
    return tuple(said.models), said.public_key, said.running, said.own_apps
