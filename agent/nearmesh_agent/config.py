"""`node.toml`: what an operator decides about one node."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nearmesh.errors import InvalidInput
from nearmesh.ids import check_machine_type
from nearmesh_agent.training.config import TrainingConfig
from nearmesh_agent.vectors.config import VectorsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the listeners bind, host:port."""

    # TLS and bearer token: clients.
    public: str = "0.0.0.0:8001"
    # TLS with a certificate of the mesh: gateways and other nodes.
    mesh: str = "0.0.0.0:8003"
    # Prometheus metrics, plain HTTP.
    metrics: str = "127.0.0.1:8002"

    def __post_init__(self) -> None:
        # Told before a single-use token is spent.
        for address in (self.public, self.mesh, self.metrics):
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or int(port) > 65535:
                raise InvalidInput(f"address {address!r} is not HOST:PORT, such as 0.0.0.0:8001")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeConfig:
    """Who may say that this machine is about to be taken away; none by default. The first word counts."""

    # A file: when it is written, the node leaves. Nothing in it, seconds, a time, or JSON as AWS writes it.
    file: Path | None = None
    # A cloud's metadata service: "aws", "gcp" or "azure".
    metadata: Literal["", "aws", "gcp", "azure"] = ""
    # The service's address if it is not the cloud's usual one; without `metadata`, a URL that answers as a file reads.
    url: str = ""
    # One's own: "package.module:Class", made with this table, whose `notice` returns when the time has come.
    source: str = ""
    # How often the file and the service are looked at. A second of the notice is lost to it at most.
    every_s: float = 1.0
    # How long the machine stays where a notice does not say.
    default_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0.05 <= self.every_s <= 60 or not 0 < self.default_s <= 3600:
            raise InvalidInput("every_s must be 0.05 to 60, default_s above 0 and at most 3600")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise InvalidInput(f"url {self.url!r} does not begin with http:// or https://")
        if self.source and not re.fullmatch(r"[\w.]+:\w+", self.source):
            raise InvalidInput(f"source {self.source!r} is not package.module:Class")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """How model versions come to this node's disk, and what may lie there."""

    # What is read for models from outside the node's site, over all of them, megabits per second. Less leaves the link
    # to inference, and lets a new version wait longer. 0: no limit.
    bandwidth_mbit_s: float = 0.0
    # What models may take on the disk. Versions that nobody wants any more then stay until room is needed, the least
    # recently wanted go first. 0: they go as soon as another one serves; what a rollback needs stays in any case.
    disk_budget_mib: int = 0
    # What has to stay free on the disk beside that.
    min_free_mib: int = 256
    # Read-only folders with weights that came with the machine, as blobs by digest or as an OCI image layout. They are
    # used where they lie.
    baked: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.bandwidth_mbit_s < 0 or self.disk_budget_mib < 0 or self.min_free_mib < 0:
            raise InvalidInput("bandwidth_mbit_s, disk_budget_mib and min_free_mib must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What an operator decides about one model on this node."""

    # The variant that serves here; of a pipeline, in each step that has it. Empty: the fastest of those that run here.
    variant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """A node's configuration."""

    # Key, certificate, models and the last wanted state.
    data: Path
    listen: Listen = field(default_factory=Listen)
    notice: NoticeConfig = field(default_factory=NoticeConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    # IP that clients and gateways reach this node at. Empty: the listener's own, or this machine's on the way to the
    # control plane; behind a translated address it has to be said.
    advertise_host: str = ""
    # A file with the single-use join token; needed until the node has joined. NEARMESH_JOIN_TOKEN does as well.
    join_token_file: Path | None = None
    # What this machine costs; a price feed's price wins over it, and an operator's `nearmesh node price` over both.
    usd_per_hour: float = 0.0
    # The machine is bought on spot terms: it costs the spot price, and may be taken away at short notice.
    spot: bool = False
    # What the cloud calls this kind of machine; a price feed may price it by that. Empty: none.
    machine_type: str = ""
    # Names this kind of machine; nodes that share it count as equally fast. Empty: taken from the processor.
    hardware: str = ""
    # By model, what differs from the rule here: [models.NAME].
    models: dict[str, ModelConfig] = field(default_factory=dict)
    # ONNX Runtime execution providers, best first; each must be usable or the node does not start serving a model.
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    # Threads inside one engine call. 0: one, with as many calls at a time as there are cores, and all cores for a
    # request that is alone where that proves faster. More suits a node that serves few requests at a time.
    threads: int = 0
    # Whether packages may bring Python functions (steps of pipelines). They run in the agent with all its rights; only
    # operators publish packages.
    allow_python: bool = True
    # Largest request and answer. A larger one is refused with RESOURCE_EXHAUSTED.
    max_message_bytes: int = 64 * 1024 * 1024
    # Requests of one model that may wait for the engine; one more is refused.
    queue_limit: int = 256
    # What the versions in memory may take together. More models answer without being loaded first; too much, and the
    # system ends the agent. 0: four fifths of what the machine or its control group has.
    memory_budget_mib: int = 0
    # A version that nobody asks for leaves memory after so long; the next request waits for it to be loaded. 0: it
    # stays until another one needs its place.
    idle_unload_s: float = 0.0
    # After a swap, requests that name the old version are answered by it for so long; two versions are in memory
    # meanwhile. Shorter when nobody named it of late.
    drain_s: float = 5.0
    # On SIGTERM, requests in progress get this long.
    grace_s: float = 10.0

    def __post_init__(self) -> None:
        if self.usd_per_hour < 0:
            raise InvalidInput(f"usd_per_hour must be 0 or more, got {self.usd_per_hour}")
        check_machine_type(self.machine_type)
        if self.max_message_bytes < 1024 * 1024:
            raise InvalidInput(f"max_message_bytes must be at least 1 MiB, got {self.max_message_bytes}")
        if self.queue_limit < 1 or self.threads < 0 or self.grace_s < 0:
            raise InvalidInput("queue_limit must be 1 or more, threads and grace_s 0 or more")
        if self.memory_budget_mib < 0 or self.idle_unload_s < 0 or self.drain_s < 0:
            raise InvalidInput("memory_budget_mib, idle_unload_s and drain_s must be 0 or more")

    def hardware_name(self) -> str:
        """`hardware`, or the processor's model and the number of cores."""
        return self.hardware or f"{_processor()} x{os.cpu_count()}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
