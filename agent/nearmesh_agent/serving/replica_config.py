"""How one replica takes requests."""

from __future__ import annotations

from dataclasses import dataclass

from nearmesh.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """How one replica takes requests."""

    # Requests that may wait for an instance, unless the package says otherwise. More absorbs longer bursts of requests
    # that have no deadline; each adds its engine time to the last one's.
    queue: int = 64
    # An engine call that takes longer than this, and than ten times the usual one, makes the replica not ready. Less
    # would take a request with uncommonly much work for a hung engine.
    stall_s: float = 4.0
    # As much for a watchdog's probe, which has the smallest work there is. After three seconds of silence it is still
    # within the five that a wedged engine may go unnoticed.
    probe_s: float = 1.5
    # How long an unloaded version may go on answering what it had accepted.
    close_s: float = 10.0
    # How long an unloaded version may go on for the sequences that began with it, if they are never silent for the
    # package's `idle_s`. More spares long calls; meanwhile two versions share the node's memory.
    sequences_s: float = 600.0

    def __post_init__(self) -> None:
        if self.queue < 0 or self.stall_s <= 0 or self.probe_s <= 0 or self.close_s < 0 or self.sequences_s < 0:
            raise ConfigError("`queue`, `close_s` and `sequences_s` are 0 or more, `stall_s` and `probe_s` are above 0")
