"""What the router hands to xDS: for one client region, the endpoints of every model in order of preference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

# Clients reach a node's public listener with a bearer token, gateways its mesh listener with a certificate.
Listener = Literal["public", "mesh"]

# Shares travel in steps of so much: one that wavers by less is not sent again.
SHARE_STEP = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One node as the clients of one region reach it."""

    node: str
    site: str
    region: str
    # host:port, after any endpoint override for the client's region.
    address: str
    # Of the region's requests, 0 to 1; those without any stand there for the case that the others fail.
    share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRoutes:
    """One model's endpoints for each objective, the choice first, and the objective used when a call names none."""

    default_objective: str
    by_objective: Mapping[str, tuple[Endpoint, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """Everything that one client region needs on one kind of listener. Equal tables mean nothing to push."""

    region: str
    models: Mapping[str, ModelRoutes]
    # For calls that name no model: live nodes, the nearest first.
    nearest: tuple[Endpoint, ...]


def in_steps(share: float) -> float:
    """A share as it travels; what gets anything keeps one step."""
    return round(max(SHARE_STEP, round(share / SHARE_STEP) * SHARE_STEP), 6) if share > 0 else 0.0


class RouteSource(Protocol):
    """Where the xDS server finds the present tables."""

    def table(self, region: str, listener: Listener) -> RouteTable:
        """The table as of now; cheap to call.

        Asked for every region that somebody watches, after each change. Routes that are what they were had better be
        the same object: then comparing them costs nothing.
        """
        ...

    async def changed(self, after: int) -> int:
        """Waits until the generation is above `after` and returns it; 0 never waits."""
        ...
