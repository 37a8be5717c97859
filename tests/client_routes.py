"""Routes and endpoints as a client would have them from the control plane."""

from __future__ import annotations

from nearmesh import routing
from nearmesh.client.picker import Endpoint, Route


def endpoint(
    node: str,
    network_ms: float = 10.0,
    usd: float = 1.0,
    ready: bool = True,
    *,
    site: str = "",
    share: float = 0.0,
    told: str = "",
) -> Endpoint:
    candidate = routing.Candidate(
        node=node,
        site=site or f"{node}-site",
        region="here",
        ready=ready,
        network_ms_p50=network_ms,
        network_ms_p95=network_ms,
        network_measured=True,
        service_ms_p50=10.0,
        service_ms_p95=20.0,
        usd_per_hour=usd,
        usd_per_1000=usd,
        share=share,
    )
    return Endpoint(candidate, f"127.0.0.1:{len(node)}", f"{node}.mesh", told)


def route(*endpoints: Endpoint, objective: routing.Objective = "nearest", deadline_ms: float = 300.0) -> Route:
    return Route("m", "1", "sha256:0", objective, deadline_ms, endpoints)
