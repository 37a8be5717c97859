"""Measures the way to nodes of other regions that the control plane names, and keeps the round trips for its report.

A node's clients go the same way as the node itself, so its region is known before anybody there has asked for anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from nearmesh.addresses import is_address
from nearmesh.probe import Probe, ServerLiveEcho, Target
from nearmesh.tls import Credentials
from nearmesh.v1 import node_pb2 as pb

# A tiny call to each: enough for a median within a turn, and nothing for either side.
EVERY_S = 3.0
# Whatever the control plane says, and however long it is away.
MAX_PEERS = 16
MAX_KEPT = 20


class PeerTimes:
    """`run` measures for ever; `take` hands over what was measured since the last time."""

    def __init__(self, wanted: Callable[[], Sequence[pb.Peer]], credentials: Callable[[], Credentials]) -> None:
        """`wanted` are the peers of the moment; `credentials` the node's own, asked again as they are renewed."""
        self._wanted = wanted
        self._credentials = credentials
        self._kept: dict[str, list[float]] = {}

    async def run(self) -> None:
        """For ever; a channel shows the certificate that it was made with, so a renewed one opens new ones."""
        while True:
            shown = self._credentials()
            probe = Probe(targets=self._targets, connect=_connect(shown), report=self._keep, clock=time.perf_counter)
            await probe.run(lambda shown=shown: self._credentials() is shown, EVERY_S)  # type: ignore[misc]

    def take(self) -> list[pb.PeerSample]:
        """Round trips since the last time this was asked."""
        kept, self._kept = self._kept, {}
        return [pb.PeerSample(node=node, network_ms=samples) for node, samples in kept.items()]

    async def _targets(self) -> Sequence[Target]:
        return [Target(p.node, p.address, p.server_name) for p in self._wanted()[:MAX_PEERS] if is_address(p.address)]

    async def _keep(self, samples: Mapping[str, Sequence[float]]) -> None:
        for node, found in samples.items():
            if node in self._kept or len(self._kept) < 2 * MAX_PEERS:
                self._kept[node] = [*self._kept.get(node, ()), *found][-MAX_KEPT:]


def _connect(shown: Credentials) -> Callable[[Target], ServerLiveEcho]:
    credentials = shown.channel_credentials()
    return lambda target: ServerLiveEcho(target, credentials)
