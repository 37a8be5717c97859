"""One discovery stream's memory: what it asked for, what it was sent, and therefore what it must be sent now.

State-of-the-world xDS, without sockets: requests go in, responses come out, serialized. However many changes there are
before a stream is ready for the next response, no more than its latest state is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from envoy.service.discovery.v3 import discovery_pb2

from nearmesh.errors import InvalidInput
from nearmesh.xds.resources import CLUSTER, ENDPOINTS, LISTENER, PUSH_ORDER, Resources, model_of
from nearmesh.xds.wire import response

log = logging.getLogger(__name__)

# Bounds what one stream can make the control plane remember; a name is a model's, or a cluster's made from one.
MAX_NAMES = 1000
MAX_NAME_CHARACTERS = 253

# Of these, a response lists everything; of the others, what changed is enough.
_WHOLE_TYPES = frozenset({CLUSTER, LISTENER})

# Of these, each resource belongs to one model, and its name says to which.
_OF_MODELS = frozenset({CLUSTER, ENDPOINTS, LISTENER})


@dataclass(slots=True)
class _Type:
    """What the stream knows of one resource type."""

    names: frozenset[str]
    # No names in the first request: everything there is, now and later.
    wildcard: bool
    version: int = 0
    nonce: str = ""
    sent: dict[str, bytes] = field(default_factory=dict)
    # A response is due even if nothing changed: the first one, and one that a client waits for.
    due: bool = True


class Subscription:
    """The state of one stream; `peer` stands in log lines."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._types: dict[str, _Type] = {}
        self.refused = 0
        # The models whose listeners, clusters or endpoints are asked for by name; and whether all there are.
        self.models: frozenset[str] = frozenset()
        self.everything = False

    @property
    def due(self) -> bool:
        """Whether a response is owed though nothing changed."""
        return any(kind.due for kind in self._types.values())

    def take(self, request: discovery_pb2.DiscoveryRequest) -> bool:
        """Notes what a request asks for, accepts or refuses; whether it asks for something else than before.

        Raises InvalidInput when it asks for too much.
        """
        _check_names(request.resource_names)
        names = frozenset(request.resource_names)
        known = self._types.get(request.type_url)
        if known is None:
            if request.type_url in PUSH_ORDER:
                self._types[request.type_url] = _Type(names - {"*"}, not names or "*" in names)
                self._named()
            return True
        if request.response_nonce != known.nonce:
            return (
                False  # Crossed with a response that is still on its way; the answer to that one tells what is wanted.
            )
        if request.HasField("error_detail"):
            self.refused += 1
            log.warning("xds refused peer=%s type=%s: %s", self._peer, request.type_url, request.error_detail.message)
        return self._retarget(known, names)

    def _retarget(self, known: _Type, names: frozenset[str]) -> bool:
        if names == known.names or (known.wildcard and not names):
            return False
        known.due = known.due or bool(names - known.names)
        known.names = names - {"*"}
        known.sent = {name: data for name, data in known.sent.items() if known.wildcard or name in names}
        self._named()
        return True

    def _named(self) -> None:
        of_models = [kind for type_url, kind in self._types.items() if type_url in _OF_MODELS]
        self.models = frozenset(model_of(name) for kind in of_models for name in kind.names)
        self.everything = any(kind.wildcard for kind in of_models)

    def pending(self, resources: Resources) -> Iterator[bytes]:
        """The responses that have to be sent so that the stream knows `resources`, in the order they have to be sent.

        Clusters that are gone leave last, after the routes that named them. Who asks for clusters by name asks no more
        for those once its new routes lead elsewhere; before, it would have neither the old ones nor the new ones yet.
        """
        for type_url in PUSH_ORDER:
            yield from self._send(type_url, resources, keep_gone=type_url == CLUSTER)
        clusters = self._types.get(CLUSTER)
        if clusters and clusters.wildcard:
            yield from self._send(CLUSTER, resources)

    def _send(self, type_url: str, resources: Resources, *, keep_gone: bool = False) -> Iterator[bytes]:
        known = self._types.get(type_url)
        if known is None:
            return
        current = resources.get(type_url, {})
        wanted = dict(current) if known.wildcard else {n: current[n] for n in known.names if n in current}
        if keep_gone:
            wanted = known.sent | wanted
        changed = {name: data for name, data in wanted.items() if known.sent.get(name) != data}
        whole = type_url in _WHOLE_TYPES
        if not (changed or known.due or (whole and known.sent.keys() - wanted.keys())):
            return
        if type_url == CLUSTER and changed:
            self._forget_endpoints()
        known.version += 1
        known.nonce = str(known.version)
        known.sent = wanted
        known.due = False
        chosen = wanted if whole else changed
        yield response(type_url, known.nonce, [chosen[name] for name in sorted(chosen)])

    def _forget_endpoints(self) -> None:
        """A cluster that is new or has changed waits for its endpoints, even for those it was sent before."""
        if ENDPOINTS in self._types:
            self._types[ENDPOINTS].sent = {}


def _check_names(names: Sequence[str]) -> None:
    if len(names) > MAX_NAMES:
        raise InvalidInput(f"{len(names)} resource names in one request; at most {MAX_NAMES} are taken")
    longest = max(map(len, names), default=0)
    if longest > MAX_NAME_CHARACTERS:
        raise InvalidInput(f"a resource name of {longest} characters; at most {MAX_NAME_CHARACTERS} are taken")
