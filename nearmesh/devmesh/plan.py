"""What the local mesh consists of: three regions, one node and one gateway in each, and the WAN between them.

Round trips are averages of pings between Google Cloud's regions, published on 2 June 2020 (vitorenesduarte/fantoch,
Apache-2.0 or MIT). Prices are Google Compute Engine's on-demand list prices of g2-standard-4, one NVIDIA L4, on
2025-06-26, in US dollars per hour (Cyclenerd/google-cloud-pricing-cost-calculator, Apache-2.0).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tomli_w

from nearmesh.devmesh import training
from nearmesh.devmesh.ports import free_ports

MESH = "dev"
REGIONS = ("europe-west1", "us-east1", "asia-northeast1")

ROUND_TRIP_MS = {
    ("europe-west1", "europe-west1"): 0.272,
    ("europe-west1", "us-east1"): 93.044,
    ("europe-west1", "asia-northeast1"): 230.536,
    ("us-east1", "us-east1"): 0.272,
    ("us-east1", "asia-northeast1"): 155.309,
    ("asia-northeast1", "asia-northeast1"): 0.275,
}
USD_PER_HOUR = {"europe-west1": 0.7783, "us-east1": 0.7068, "asia-northeast1": 0.9077}

# The reference packages, and the order in which they are shown.
MODELS = ("file-type", "text-detector", "text-recognizer", "voice-activity")
# Makes vectors of texts, for `nearmesh dev up --vectors`.
EMBEDDER = "sentence-encoder"

# Three nodes, three gateways and their clients share this machine's cores.
NODE_THREADS = 1
GATEWAY_THREADS = 1
# A node whose session broke leaves the routes after this; until then it is tried last.
LEASE_S = 5.0
# How often a node looks whether its machine is about to be taken away.
NOTICE_EVERY_S = 0.2


def round_trip_ms(a: str, b: str) -> float:
    """Between two of the local mesh's regions, milliseconds."""
    return ROUND_TRIP_MS.get((a, b)) or ROUND_TRIP_MS[b, a]


def site_of(region: str) -> str:
    return f"{region}-a"


def node_of(region: str) -> str:
    return f"node-{region}"


def gateway_of(region: str) -> str:
    return f"gateway-{region}"


@dataclass(frozen=True, slots=True)
class NodePorts:
    """A node's own listeners."""

    public: int
    mesh: int
    metrics: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every address of one local mesh, chosen before anything is started."""

    folder: Path
    public: int
    mesh: int
    http: int
    # Commands to the emulated WAN: cut, freeze, heal, statistics.
    wan_control: int
    nodes: dict[str, NodePorts]
    gateways: dict[str, int]
    # By client region, node's region and listener.
    links: dict[tuple[str, str, str], int]
    usd_per_hour: dict[str, float]
    # Whether nodes take part in federated rounds.
    trains: bool = False
    # Whether nodes keep vectors, and serve a model that makes them of texts.
    vectors: bool = False

    # Also the sign by which a folder is known to be a local mesh's.
    WAN_CONFIG: ClassVar[str] = "wan.json"

    @classmethod
    def make(cls, folder: Path, *, vectors: bool = False) -> Plan:
        """With ports that are free now. Raises ConfigError when there are too few."""
        pairs = [(a, b, listener) for a in REGIONS for b in REGIONS for listener in ("public", "mesh")]
        ports = iter(free_ports(4 + 3 * len(REGIONS) + len(REGIONS) + len(pairs)))
        return cls(
            folder=folder,
            public=next(ports),
            mesh=next(ports),
            http=next(ports),
            wan_control=next(ports),
            nodes={region: NodePorts(next(ports), next(ports), next(ports)) for region in REGIONS},
            gateways={region: next(ports) for region in REGIONS},
            links={pair: next(ports) for pair in pairs},
            usd_per_hour=dict(USD_PER_HOUR),
            trains=training.is_possible(),
            vectors=vectors,
        )

    # Files for the processes

    def write(self) -> None:
        """Every configuration file, below `folder`."""
        self._toml(self.control_plane_config, self._control_plane())
        for region in REGIONS:
            self._toml(self.node_config(region), self._node(region))
            self._toml(self.gateway_config(region), self._gateway(region))
        self.wan_config.write_text(
            json.dumps({"links": list(self._links()), "control_port": self.wan_control}, indent=1)
        )

    @property
    def control_plane_config(self) -> Path:
        return self.folder / "mesh.toml"

    @property
    def control_plane_data(self) -> Path:
        return self.folder / "control-plane"

    @property
    def wan_config(self) -> Path:
        return self.folder / self.WAN_CONFIG

    def node_config(self, region: str) -> Path:
        return self.folder / f"{node_of(region)}.toml"

    def training_data(self, region: str) -> Path:
        """What the region's node trains on."""
        return self.folder / "data" / region / training.MODEL

    def gateway_config(self, region: str) -> Path:
        return self.folder / f"{gateway_of(region)}.toml"

    def notice(self, region: str) -> Path:
        """The file whose being written tells the region's node that its machine is taken away."""
        return self.folder / f"{node_of(region)}.notice"

    def bootstrap(self, region: str) -> Path:
        return self.folder / f"bootstrap-{region}.json"

    def fallbacks(self, region: str) -> dict[str, str]:
        """The nodes' ids by their public listeners as clients of the region reach them, the nearest first."""
        nearest = sorted(REGIONS, key=lambda other: round_trip_ms(region, other))
        return {local(self.links[region, other, "public"]): node_of(other) for other in nearest}

    @property
    def models(self) -> tuple[str, ...]:
        """The packages that are served."""
        more = [name for name, wanted in ((training.MODEL, self.trains), (EMBEDDER, self.vectors)) if wanted]
        return (*MODELS, *more)

    def _toml(self, path: Path, content: dict[str, Any]) -> None:
        path.write_text(tomli_w.dumps(content))

    def _control_plane(self) -> dict[str, Any]:
        overrides = [
            {
                "client_region": client,
                "node": node_of(node),
                "listener": listener,
                "address": local(port),
            }
            for (client, node, listener), port in self.links.items()
        ]
        return {
            "mesh": MESH,
            "data": str(self.control_plane_data),
            "lease_s": LEASE_S,
            "listen": {"public": local(self.public), "mesh": local(self.mesh), "http": local(self.http)},
            "endpoint_override": overrides,
        }

    def _node(self, region: str) -> dict[str, Any]:
        ports = self.nodes[region]
        return {
            "data": str(self.folder / node_of(region)),
            "join_token_file": str(self.join_token(node_of(region))),
            "usd_per_hour": self.usd_per_hour[region],
            "threads": NODE_THREADS,
            "grace_s": 5.0,
            "notice": {"file": str(self.notice(region)), "every_s": NOTICE_EVERY_S},
            "listen": {
                "public": local(ports.public),
                "mesh": local(ports.mesh),
                "metrics": local(ports.metrics),
            },
            **({"training": self._training(region)} if self.trains else {}),
            **({"vectors": {"enabled": True}} if self.vectors else {}),
        }

    def _training(self, region: str) -> dict[str, Any]:
        data = {training.MODEL: {"path": str(self.training_data(region))}}
        # As Flower's own examples ask a site which part of their data is its.
        part = f"partition-id={list(REGIONS).index(region)} num-partitions={len(REGIONS)}"
        share = training.CPU_SHARE
        return {"allowed": True, "own_apps": True, "cpu_share": share, "node_config": part, "data": data}

    def _gateway(self, region: str) -> dict[str, Any]:
        return {
            "data": str(self.folder / gateway_of(region)),
            "listen": local(self.gateways[region]),
            "plaintext": True,
            "envoy_threads": GATEWAY_THREADS,
        }

    def join_token(self, name: str) -> Path:
        return self.folder / f"{name}.join"

    def _links(self) -> Iterator[dict[str, Any]]:
        for (client, node, listener), port in self.links.items():
            ports = self.nodes[node]
            yield {
                "name": link_name(client, node, listener),
                "client_region": client,
                "node": node_of(node),
                "listener": listener,
                "listen_port": port,
                "target": local(ports.public if listener == "public" else ports.mesh),
                "round_trip_ms": round_trip_ms(client, node),
            }


def link_name(client: str, node: str, listener: str) -> str:
    """The WAN link from a client region to a node's region."""
    return f"{client}:{node}:{listener}"


def local(port: int) -> str:
    """host:port on loopback."""
    return f"127.0.0.1:{port}"
