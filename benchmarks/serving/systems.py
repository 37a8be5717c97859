"""The servers that are compared: what each is started with, and why it is set so.

A peer gets what its own documents recommend for throughput without a GPU: one session of ONNX Runtime with a thread for
each core (one thread for a model of microseconds), batching on where it has any, no access log.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.environments import ENVIRONMENTS
from benchmarks.serving.models import Model
from benchmarks.serving.servers.session import Task
from nearmesh.devmesh.children import script

SERVERS = Path(__file__).parent / "servers"
OURS, ECHO, OWN_ECHO, IN_PROCESS = "nearmesh", "echo", "own-echo", "in-process"
# Larger than any message here.
MESSAGE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of one server."""

    model: Model
    # Its settings files and its log; empty before it starts.
    folder: Path
    grpc_port: int
    http_port: int

    def task(self, delay_s: float, *, queue: int = 0, queue_s: float = 0.0) -> Task:
        return Task(
            model=self.model.name,
            weights=str(self.model.weights),
            max_batch=self.model.max_batch,
            threads=self.model.threads or len(os.sched_getaffinity(0)),
            delay_s=delay_s,
            grpc_port=self.grpc_port,
            http_port=self.http_port,
            queue=queue,
            queue_s=queue_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One server of the comparison."""

    name: str
    # For the page: what it is and how it is set.
    about: str
    command: Callable[[Start], list[str]]
    # "oip", or the name of a transport of its own.
    protocol: str = "oip"
    # Of the peers: where it is installed.
    environment: str = ""
    # Whether its answers are the model's.
    answers: bool = True
    # Another system that this one is but for its queue: it is measured in bursts alone, with the other one's peak.
    like: str = ""
    # Whether it works on while nobody asks it; then it is stopped while others have their turn.
    restless: bool = False

    def port(self, start: Start) -> int:
        """Where its clients go."""
        return start.grpc_port if self.protocol == "oip" else start.http_port


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server: this process's, less what would make libraries start threads beside the engine's."""
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(SERVERS)}
    return {**environment, **quiet, "PYTHONDONTWRITEBYTECODE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}


def _ours(start: Start) -> list[str]:
    folder = str(start.model.folder)
    return [script("nearmesh-agent"), "serve", folder, "--listen", f"127.0.0.1:{start.grpc_port}"]


def _echo(start: Start) -> list[str]:
    return [script("python"), str(SERVERS / "echo.py"), json.dumps(asdict(start.task(0)))]


def _peer(name: str, **settings: Any) -> Callable[[Start], list[str]]:
    """As a script in the peer's environment; the settings are those of `Start.task`."""

    def command(start: Start) -> list[str]:
        file = SERVERS / f"serve_{name}.py"
        return [str(ENVIRONMENTS[name].python), str(file), json.dumps(asdict(start.task(**settings)))]

    return command


# What waits longer would be too late for a deadline of 200 ms, of which a batch takes up to half.
SHED_QUEUE, SHED_AFTER_S = 16, 0.1


# MLServer batches only what waits for a time above nothing.
MLSERVER_DELAY_S = 0.001


def _mlserver(start: Start) -> list[str]:
    task = start.task(MLSERVER_DELAY_S)
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "grpc_port": task.grpc_port,
        "http_port": task.http_port,
        "grpc_max_message_length": MESSAGE_BYTES,
        "metrics_endpoint": None,
        # In the server's own process: a pool of workers would copy every tensor once more.
        "parallel_workers": 0,
    }
    model = {
        "name": task.model,
        "implementation": "mlserver_runtime.OnnxRuntime",
        "parameters": {"uri": task.weights, "extra": {"threads": task.threads}},
        "max_batch_size": task.max_batch,
        "max_batch_time": task.delay_s,
    }
    (start.folder / "settings.json").write_text(json.dumps(settings), "utf-8")
    (start.folder / "model-settings.json").write_text(json.dumps(model), "utf-8")
    return [str(ENVIRONMENTS["mlserver"].python.with_name("mlserver")), "start", str(start.folder)]


SYSTEMS = {
    found.name: found
    for found in (
        System(name=OURS, about="this agent, `nearmesh-agent serve`, with nothing set", command=_ours),
        System(
            name="pytriton",
            about="Triton's gRPC front end and dynamic batcher, the engine in its Python function; no queue delay",
            command=_peer("pytriton", delay_s=0),
            environment="pytriton",
        ),
        System(
            name="pytriton-shed",
            about=f"as pytriton, but it refuses what waits for {SHED_AFTER_S * 1000:.0f} ms or behind {SHED_QUEUE} "
            "others, which a closed loop would meet too; in bursts alone",
            command=_peer("pytriton", delay_s=0, queue=SHED_QUEUE, queue_s=SHED_AFTER_S),
            environment="pytriton",
            like="pytriton",
        ),
        System(
            name="kserve",
            about="KServe's Python model server over gRPC; it batches only in a sidecar for HTTP, so not here",
            command=_peer("kserve", delay_s=0),
            environment="kserve",
        ),
        System(
            name="mlserver",
            about="MLServer over gRPC, adaptive batching with 1 ms of waiting, the engine in the server's process",
            command=_mlserver,
            environment="mlserver",
        ),
        System(
            name="litserve",
            about="LitServe over HTTP with base64 in JSON, one worker, batching with 0.1 ms of waiting",
            command=_peer("litserve", delay_s=0.0001),
            protocol="litserve",
            environment="litserve",
            # Its workers look for requests all the time, which takes 0.4 cores.
            restless=True,
        ),
        System(
            name=ECHO,
            about="a floor: grpc.aio that parses the same requests and says one prepared answer",
            command=_echo,
            answers=False,
        ),
        System(
            name=OWN_ECHO,
            about="the same with this agent's own gRPC server in grpc.aio's place; no floor is taken from it",
            command=lambda start: [*_echo(start), "own"],
            answers=False,
        ),
    )
}
PEERS = tuple(name for name, system in SYSTEMS.items() if system.environment)
