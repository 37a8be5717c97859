"""Client processes, one for each way, and the rounds in which they take turns.

Within a round every way is measured on the same model right after the others, so that whatever disturbs the machine
for a while disturbs all of them, and a ratio within a round is worth more than one between two runs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.figures import Cell
from benchmarks.ways import COMPARED, Place
from nearmesh.devmesh.children import script
from nearmesh.devmesh.mesh import LocalMesh
from nearmesh.devmesh.plan import MODELS, local
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import MeshError
from nearmesh.process import leashed

# One caller shows what a request costs, four what the mesh carries.
CALLERS = (1, 4)
# A client imports its libraries, connects, and asks every model once.
READY_WITHIN_S = 60.0
# Beyond its own seconds, a measurement waits for its checked call and its last calls.
DONE_WITHIN_S = 60.0


class ClientFailed(MeshError):
    """A client process of the benchmark ended, or was silent for too long."""

    reason = "CLIENT_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured."""

    rounds: int
    # Of each measurement; a round has one for each way, model and number of callers.
    seconds: float

    @property
    def cells(self) -> int:
        return self.rounds * len(MODELS) * len(CALLERS) * len(COMPARED)


class Client:
    """One client process: a line in, a line out."""

    def __init__(self, way: str, place: Place) -> None:
        self._way = way
        self._command = [script("python"), "-m", "benchmarks.client", way, json.dumps(asdict(place))]
        self._process: asyncio.subprocess.Process

    async def start(self) -> None:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *leashed(self._command), stdin=pipe, stdout=pipe, cwd=CHECKOUT
        )

    async def hear(self, within_s: float) -> dict[str, Any]:
        """The next line. Raises ClientFailed."""
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), within_s)
        except TimeoutError:
            raise ClientFailed(f"client {self._way} said nothing for {within_s:.0f} s") from None
        if not line:
            raise ClientFailed(f"client {self._way} ended with code {await self._process.wait()}; see its error above")
        found: dict[str, Any] = json.loads(line)
        del found["event"]
        return found

    async def measure(self, model: str, callers: int, seconds: float) -> Mapping[str, Any]:
        """One measurement. Raises ClientFailed."""
        assert self._process.stdin is not None
        order = {"model": model, "callers": callers, "seconds": seconds}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return await self.hear(seconds + DONE_WITHIN_S)

    async def close(self) -> None:
        """Ends the process, if it has not ended."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


def place_in(mesh: LocalMesh, region: str) -> Place:
    """What a client in that region knows of the mesh."""
    plan = mesh.plan
    return Place(
        region=region,
        bootstrap=str(plan.bootstrap(region)),
        gateway=local(plan.gateways[region]),
        node=local(plan.nodes[region].public),
        link=local(plan.links[region, region, "public"]),
    )


@asynccontextmanager
async def clients(place: Place) -> AsyncIterator[tuple[dict[str, Client], Mapping[str, Any]]]:
    """A warm client for each way, and the bytes of each model's request and answer. Raises ClientFailed."""
    found: dict[str, Client] = {}
    try:
        for way in COMPARED:
            client = Client(way, place)
            await client.start()
            found[way] = client
        ready = [await client.hear(READY_WITHIN_S) for client in found.values()]
        yield found, ready[0]["models"]
    finally:
        await asyncio.gather(*(client.close() for client in found.values()))


async def take_turns(found: Mapping[str, Client], settings: Settings) -> AsyncIterator[Cell]:
    """Every cell, as soon as it has been measured. Raises ClientFailed."""
    for number, model, callers, way in turns(settings.rounds):
        measured = await found[way].measure(model, callers, settings.seconds)
        yield Cell(round=number, model=model, way=way, callers=callers, **measured)


def turns(rounds: int) -> Iterable[tuple[int, str, int, str]]:
    """Round, model, callers and way of each measurement: the ways change fastest."""
    return (
        (number, model, callers, way)
        for number in range(1, rounds + 1)
        for model in MODELS
        for callers in CALLERS
        for way in COMPARED
    )
