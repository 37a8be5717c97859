"""Two sites that have a collection in common: cut off from each other, or killed, while both write and delete.

Real processes: a control plane, two agents with their vectors' processes, and the emulated WAN between their mesh
listeners. Checked is that both end with the same rows, that no delete was lost, that nothing comes back that a site has
acknowledged to be deleted, and that each delete has its receipt of the other site.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nearmesh.client.vectors import Collection, Passage, VectorClient
from nearmesh.devmesh.ports import free_ports
from nearmesh.devmesh.wan import LinkSettings, Wan, WanSettings, running
from nearmesh.errors import MeshError
from nearmesh.ids import node_server_name
from tests.integration.mesh_processes import MESH, ControlPlane, Node, until
from tests.signals import send

REGIONS = {"left": "europe-west1", "right": "us-east1"}
ROUND_TRIP_MS = 93.0
DIMENSION = 8
# Of rows that both sites write to and delete.
IDS = [f"row-{number}" for number in range(100)]
DELETES = 0.3
RECEIPTS_WITHIN_S = 60.0


@dataclass(slots=True)
class Place:
    """One site: its node, and its side of the collection."""

    node: Node
    client: VectorClient
    docs: Collection
    # Since the cut: what was written last of each id (None: deleted), and ids that were deleted at all.
    wrote: dict[str, str | None] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    # Numbers of calls, and what a reader saw that was not to be there.
    writes: int = 0
    deletes: int = 0
    # Whether a call for it did anything, nobody knows.
    unsure: set[str] = field(default_factory=set)
    ghosts: list[str] = field(default_factory=list)

    @property
    def site(self) -> str:
        return self.node.site

    async def texts(self) -> dict[str, str]:
        return {row.id: row.text async for row in self.docs.rows()}


@dataclass(slots=True)
class Two:
    """Both sites, and what is between them."""

    plane: ControlPlane
    wan: Wan
    left: Place
    right: Place

    async def cut(self) -> None:
        for link in self.wan.links.values():
            await link.cut()

    async def heal(self) -> None:
        for link in self.wan.links.values():
            await link.heal()

    async def same(self, within_s: float = 60.0) -> dict[str, str]:
        """Once both have the same rows: those."""

        async def look() -> dict[str, str] | None:
            try:
                left, right = await asyncio.gather(self.left.texts(), self.right.texts())
            except MeshError:
                # A process is being started again.
                return None
            return left if left == right and left else None

        found: dict[str, str] = await until(look, within_s=within_s, what="both sites have the same rows")
        return found


@asynccontextmanager
async def two_sites(folder: Path) -> AsyncIterator[Two]:
    """A control plane, and a node that keeps vectors in each of two regions."""
    ports = dict(zip(REGIONS, free_ports(2), strict=True))
    # From the one region to the node of the other.
    ways = {"left": REGIONS["right"], "right": REGIONS["left"]}
    overrides = [
        {"client_region": region, "node": name, "listener": "mesh", "address": f"127.0.0.1:{ports[name]}"}
        for name, region in ways.items()
    ]
    plane = ControlPlane(folder / "plane", endpoint_override=overrides)
    async with AsyncExitStack() as stack:
        await plane.start()
        stack.push_async_callback(plane.stop)
        nodes = {
            name: Node(plane, folder / name, name, site=name, region=region, vectors={"enabled": True})
            for name, region in REGIONS.items()
        }
        links = tuple(
            LinkSettings(
                name=name,
                client_region=ways[name],
                node=name,
                target=nodes[name].mesh,
                listener="mesh",
                listen_port=ports[name],
                round_trip_ms=ROUND_TRIP_MS,
            )
            for name in nodes
        )
        wan = await stack.enter_async_context(running(WanSettings(links=links)))
        for node in nodes.values():
            stack.push_async_callback(node.stop)
        await asyncio.gather(*(node.start() for node in nodes.values()))
        await asyncio.gather(*(node.live() for node in nodes.values()))
        left, right = [await stack.enter_async_context(place(node)) for node in nodes.values()]
        yield Two(plane, wan, left, right)


@asynccontextmanager
async def place(node: Node) -> AsyncIterator[Place]:
    """Once its vectors can be asked for."""
    name = node_server_name(MESH, node.name)
    token = node.plane.token("data", lifetime_s=3600)
    async with VectorClient(node.public, node.plane.authority.ca_pem, token, server_name=name) as client:

        async def there() -> bool:
            try:
                await client.list()
            except MeshError:
                return False
            return True

        await until(there, within_s=30, what=f"the vectors of {node.name}:\n{node.child.last_words(20)}")
        yield Place(node, client, client.collection("docs"))


def passage(name: str, text: str) -> Passage:
    numbers = np.random.default_rng(abs(hash((name, text))) % 2**32).normal(size=DIMENSION)
    return Passage(id=name, vector=numbers.astype(np.float32), text=text)


async def common(two: Two) -> None:
    """The collection, at both sites, with rows of either."""
    await two.left.client.create("docs", dimension=DIMENSION, replicate_to=["right"])
    await two.left.docs.upsert([passage(name, "from left") for name in IDS[::2]])
    await until(lambda: _has(two.right, len(IDS[::2])), within_s=30, what=f"rows at {two.right.site}: {_words(two)}")
    await two.right.docs.upsert([passage(name, "from right") for name in IDS[1::2]])
    await until(lambda: _has(two.left, len(IDS)), within_s=30, what=f"rows at {two.left.site}: {_words(two)}")


def _words(two: Two) -> str:
    return "\n".join(place.node.child.last_words(15) for place in (two.left, two.right))


async def _has(place: Place, rows: int) -> bool:
    try:
        return await place.docs.count() == rows
    except MeshError:
        return False


async def run(folder: Path, seconds: float, seed: int = 1) -> dict[str, Any]:
    """On sites of its own."""
    async with two_sites(folder) as two:
        return await apart(two, seconds, seed)


async def apart(two: Two, seconds: float, seed: int) -> dict[str, Any]:
    """Cuts, has both go on for so long, heals, and checks; figures of what happened."""
    await common(two)
    await two.cut()
    places = (two.left, two.right)
    until_s = time.monotonic() + seconds
    await asyncio.gather(*(_busy(place, until_s, random.Random(f"{seed}/{place.site}")) for place in places))
    for place in places:
        assert {row.id for row in await place.docs.fetch(IDS)} == _expected(place), place.site
    lags = {place.site: (await place.docs.describe()).replicas[0] for place in places}
    assert all(lag.lag_rows and not lag.connected for lag in lags.values()), lags
    stop, healed_s = asyncio.Event(), time.time()
    watching = [asyncio.create_task(_watch(place, _never(place, two), stop)) for place in places]
    await two.heal()
    rows = await two.same()
    converged_s = time.time() - healed_s
    stop.set()
    await asyncio.gather(*watching)
    _check(two, rows)
    receipts_s = await _receipts(two, healed_s)
    return {
        "apart_s": seconds,
        "writes": sum(place.writes for place in places),
        "deletes": sum(place.deletes for place in places),
        "converged_s": round(converged_s, 2),
        "receipts_s": round(receipts_s, 2),
        "rows": len(rows),
    }


async def _busy(place: Place, until_s: float, chance: random.Random) -> None:
    """Writes and deletes, one after the other."""
    number = 0
    while time.monotonic() < until_s:
        number += 1
        name = chance.choice(IDS)
        if chance.random() < DELETES:
            await place.docs.delete([name])
            place.wrote[name] = None
            place.deleted.add(name)
            place.deletes += 1
            if await place.docs.fetch([name]):
                place.ghosts.append(name)
        else:
            text = f"{place.site}-{number}"
            await place.docs.upsert([passage(name, text)])
            place.wrote[name] = text
            place.writes += 1
        await asyncio.sleep(0.005)


def _expected(place: Place) -> set[str]:
    return {name for name in IDS if place.wrote.get(name, "from before") is not None}


def _never(place: Place, two: Two) -> set[str]:
    """Deleted here, and written by nobody who knew of that: never to be seen here again."""
    other = two.right if place is two.left else two.left
    return {name for name, text in place.wrote.items() if text is None and name not in other.deleted}


async def _watch(place: Place, never: set[str], stop: asyncio.Event) -> None:
    """What searches by vectors and by words, and a look by name, show while the sites come together."""
    while not stop.is_set():
        by_vector = await place.docs.search(np.ones(DIMENSION, np.float32), k=len(IDS))
        by_words = await place.docs.retrieve("left or right", mode="lexical", k=len(IDS))
        seen = {hit.row.id for hit in (*by_vector.hits, *by_words.hits)}
        assert by_words.hits
        seen |= {row.id for row in await place.docs.fetch(sorted(never))}
        place.ghosts += sorted(seen & never)


def _check(two: Two, rows: dict[str, str]) -> None:
    """What the deletes and the last writes of each site leave."""
    for place, other in ((two.left, two.right), (two.right, two.left)):
        assert not place.ghosts, f"{place.site} showed again what it had acknowledged to be deleted: {place.ghosts}"
        for name in place.deleted - other.deleted:
            # Nothing that the other site wrote knew of the delete.
            assert rows.get(name) == place.wrote[name], name
    for name in two.left.deleted & two.right.deleted:
        assert rows.get(name) in {None, two.left.wrote[name], two.right.wrote[name]}, name
    for name in set(IDS) - two.left.deleted - two.right.deleted:
        last = {place.wrote[name] for place in (two.left, two.right) if name in place.wrote}
        assert rows.get(name) in (last or {"from left", "from right"}), name


async def killed(folder: Path, kills: int, seed: int = 1) -> dict[str, Any]:
    """One after the other, an agent or the process with its vectors is killed while both sites write and delete.

    Each site has rows of its own, so that what it acknowledged last is what there is to be in the end, at both.
    """
    async with two_sites(folder) as two:
        await common(two)
        places = (two.left, two.right)
        stop = asyncio.Event()
        busy = [asyncio.create_task(_insists(place, stop, random.Random(f"{seed}/{place.site}"))) for place in places]
        for number in range(kills):
            await asyncio.sleep(1.0)
            await _kill(places[number % 2], agent=number % 4 < 2)
        await asyncio.sleep(1.0)
        stop.set()
        await asyncio.gather(*busy)
        rows = await two.same()
        wrong = {
            name: (text, rows.get(name))
            for place in places
            for name, text in place.wrote.items()
            if name not in place.unsure and rows.get(name) != text
        }
        assert not wrong, f"acknowledged, and not so: {wrong}"
        return {
            "kills": kills,
            "writes": sum(place.writes for place in places),
            "deletes": sum(place.deletes for place in places),
            "rows": len(rows),
        }


async def _insists(place: Place, stop: asyncio.Event, chance: random.Random) -> None:
    """Writes and deletes rows of its own, whatever happens to the node."""
    names = IDS[::2] if place.site == "left" else IDS[1::2]
    number = 0
    while not stop.is_set():
        number += 1
        name, text = chance.choice(names), f"{place.site}-{number}"
        place.unsure.add(name)
        try:
            if chance.random() < DELETES:
                await place.docs.delete([name])
                place.wrote[name] = None
                place.deletes += 1
            else:
                await place.docs.upsert([passage(name, text)])
                place.wrote[name] = text
                place.writes += 1
            place.unsure.discard(name)
        except MeshError:
            await asyncio.sleep(0.05)


async def _kill(place: Place, *, agent: bool) -> None:
    """kill -9; an agent is started again, as whoever looks after it would."""
    if agent:
        await place.node.kill()
        await place.node.child.start()
        return
    for pid in _vectors_of(place.node.child.pid):
        send(pid, signal.SIGKILL)


def _vectors_of(agent: int | None) -> list[int]:
    """Process ids of what keeps an agent's vectors."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    program = b"nearmesh_agent.vectors.process"
    return [int(pid) for pid in children if program in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def _receipts(two: Two, healed_s: float) -> float:
    """How long after the cut the last site had acknowledged the last delete."""
    latest = healed_s

    async def all_there(place: Place) -> bool:
        nonlocal latest
        for receipt in await place.docs.receipts(most=1000):
            if receipt.id in place.deleted:
                known = {one.site: one.acknowledged_at_s for one in receipt.sites}
                if not all(known.get(site) for site in REGIONS):
                    return False
                latest = max(latest, *known.values())
        return True

    for place in (two.left, two.right):
        await until(lambda: all_there(place), within_s=RECEIPTS_WITHIN_S, what=f"receipts at {place.site}")  # noqa: B023
    return latest - healed_s
