"""P3 with a real control plane: what it acknowledged is there after kill -9, at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nearmesh.client.admin import AdminClient
from nearmesh.errors import JoinRefused, MeshError
from nearmesh.membership import join
from nearmesh.oci import Manifest, digest_bytes
from nearmesh.packaging.build import Artifact
from nearmesh.v1 import node_pb2
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import REGION, ControlPlane, calling, control_plane, node

READY = node_pb2.REPLICA_STATE_READY
# Each is one run of writers that a kill ends.
SEEDS = range(4)


def check_disk(plane: ControlPlane) -> None:
    """The database is sound; every version in it is whole in the OCI layout and named in its index."""
    with contextlib.closing(sqlite3.connect(f"file:{plane.data / 'state.db'}?mode=ro", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        versions = db.execute("SELECT model, version, digest FROM versions").fetchall()
    layout = plane.data / "oci"
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    named = {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in entries}
    for model, version, digest in versions:
        assert named[f"{model}:{version}"] == digest
        manifest = Manifest.from_bytes(blob(plane, digest))
        for part in manifest.blobs:
            assert digest_bytes(blob(plane, part.digest)) == part.digest


def blob(plane: ControlPlane, digest: str) -> bytes:
    return (plane.data / "oci" / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


async def restarted(plane: ControlPlane) -> None:
    """kill -9, a look at what it left, and a new start."""
    await plane.kill()
    check_disk(plane)
    await plane.start()
    check_disk(plane)


async def test_p3_whatever_was_acknowledged_is_there_after_a_kill_right_behind_it(tmp_path: Path) -> None:
    artifacts = [adding(tmp_path / version, "model", version, float(version)) for version in "12"]
    async with control_plane(tmp_path / "plane", currencies={"EUR": 1.25}) as plane, plane.operator() as operator:

        async def acknowledged(call: Awaitable[Any], look: Callable[[], Awaitable[Any]], expected: Any) -> Any:
            answer = await call
            await restarted(plane)
            assert await look() == expected
            return answer

        async def the_node(*names: str) -> Any:
            (found,) = [one for one in await operator.nodes() if one.id == "node"]
            return tuple(getattr(found, name) for name in names)

        async def the_model() -> Any:
            model = await operator.model("model")
            deployments = [(d.version, tuple(d.sites)) for d in model.deployments]
            return (
                {v.version for v in model.versions},
                deployments,
                model.objective,
                model.deadline_ms,
                tuple(model.regions),
            )

        token = await plane.join_token("node", "site")
        joining = join(token, "node", tmp_path / "node")
        await acknowledged(joining, lambda: the_node("site", "region"), ("site", REGION))
        with pytest.raises(JoinRefused, match="used already"):
            await join(token, "node", tmp_path / "again")
        await acknowledged(
            operator.set_price("node", 2.0, currency="EUR", valid_for_s=3600), lambda: the_node("usd_per_hour"), (2.5,)
        )

        async def transfers() -> Any:
            found = (await operator.prices()).transfers
            return [(one.from_region, one.to_region, one.usd_per_gb) for one in found]

        async def residency() -> Any:
            return [(rule.client_region, tuple(rule.regions)) for rule in await operator.residency()]

        await acknowledged(operator.set_transfer_price(REGION, "*", 0.08), transfers, [(REGION, "*", 0.08)])
        await acknowledged(operator.set_residency(REGION, [REGION]), residency, [(REGION, (REGION,))])
        default = ("cheapest-in-time", 300.0, ())
        await acknowledged(operator.publish(artifacts[0]), the_model, ({"1"}, [], *default))
        await operator.publish(artifacts[1])
        await operator.deploy("model", "1")
        deployments = [("2", ("site",)), ("1", ())]
        await acknowledged(operator.deploy("model", "2", ["site"]), the_model, ({"1", "2"}, deployments, *default))
        deployments.insert(0, ("1", ("site",)))
        await acknowledged(operator.rollback("model"), the_model, ({"1", "2"}, deployments, *default))
        await acknowledged(
            operator.set_policy("model", objective="nearest", deadline_ms=70.0, regions=[REGION]),
            the_model,
            ({"1", "2"}, deployments, "nearest", 70.0, (REGION,)),
        )
        await operator.drain("node")
        await acknowledged(operator.cordon("node"), lambda: the_node("draining", "cordoned"), (True, True))
        await acknowledged(operator.remove("node"), lambda: the_node("removed", "usd_per_hour"), (True, 2.5))
        actions = [entry.action for entry in reversed(await operator.audit())]
        prices = "join-token price transfer-price residency"
        assert actions == f"{prices} publish publish deploy deploy rollback policy drain cordon remove".split()


@dataclass
class Ledger:
    """What writers were told, and what they asked without an answer yet."""

    acknowledged: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    # Set once a version has been acknowledged: the writers are at work.
    published: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, fact: str, value: Any, call: Awaitable[Any]) -> None:
        self.asked[fact] = value
        await call
        self.acknowledged[fact] = value
        del self.asked[fact]
        if fact.startswith("version"):
            self.published.set()

    def check(self, seen: dict[str, Any]) -> None:
        """Everything that was acknowledged is there, and nothing that nobody asked for."""
        for fact, value in self.acknowledged.items():
            assert seen.get(fact) in (value, self.asked.get(fact, value)), fact
        for fact in seen.keys() - self.acknowledged.keys():
            assert seen[fact] == self.asked.get(fact), fact
        # From now on it is known what became of the calls that were cut off.
        self.acknowledged, self.asked = dict(seen), {}


async def facts(operator: AdminClient) -> dict[str, Any]:
    """The mesh's state in the words of the ledger."""
    seen: dict[str, Any] = {}
    for one in await operator.nodes():
        seen[f"price {one.id}"], seen[f"drain {one.id}"] = one.usd_per_hour, one.draining
    for model in await operator.models():
        seen |= {f"version {model.name} {version.version}": version.digest for version in model.versions}
        seen[f"deadline {model.name}"] = model.deadline_ms
        if model.deployments:
            seen[f"deployment {model.name}"] = model.deployments[0].version
    return seen


async def _prices(operator: AdminClient, ledger: Ledger) -> None:
    while True:
        price = ledger.acknowledged["price a"] + 1
        await ledger.write("price a", price, operator.set_price("a", price))
        drain = not ledger.acknowledged["drain b"]
        await ledger.write("drain b", drain, operator.drain("b", undo=not drain))


async def _policies(operator: AdminClient, ledger: Ledger) -> None:
    while True:
        deadline_ms = ledger.acknowledged["deadline m"] + 1
        await ledger.write("deadline m", deadline_ms, operator.set_policy("m", deadline_ms=deadline_ms))


async def _versions(operator: AdminClient, ledger: Ledger, artifacts: list[Artifact]) -> None:
    while artifacts:
        made = artifacts[0]
        version = made.manifest.version
        await ledger.write(f"version m {version}", made.digest, operator.publish(made))
        artifacts.pop(0)
        await ledger.write("deployment m", version, operator.deploy("m", version))


async def _until_cut_off(writer: Awaitable[None]) -> None:
    with contextlib.suppress(MeshError):
        await writer


async def test_p3_writers_lose_nothing_when_the_control_plane_is_killed_at_random(tmp_path: Path) -> None:
    artifacts = [adding(tmp_path / f"m{number}", "m", str(number), 1.0) for number in range(120)]
    async with control_plane(tmp_path / "plane") as plane:
        for name in "ab":
            await plane.machine(tmp_path / name, name)
        async with plane.operator() as operator:
            await operator.publish(artifacts.pop(0))
            served = adding(tmp_path / "served", "served", "1", 1.0)
            await operator.publish(served)
            await operator.deploy("served", "1", [])
            ledger = Ledger(await facts(operator))
        async with node(plane, tmp_path / "node", "node", usd_per_hour=0.0) as agent:
            await agent.serves("served", "1")
            async with calling(agent, "served") as caller:
                written = 0
                for seed in SEEDS:
                    written += await _killed_while_writing(plane, ledger, artifacts, random.Random(seed))
                assert written >= len(SEEDS), "the writers got nothing done: the test proves nothing"
                await agent.live()
                await agent.says("served", lambda r: r.live and r.status.state == READY)
                await caller.goes_on()
                assert caller.errors == []


async def _killed_while_writing(
    plane: ControlPlane, ledger: Ledger, artifacts: list[Artifact], chance: random.Random
) -> int:
    """How many versions were acknowledged on the way."""
    before = len(artifacts)
    ledger.acknowledged.update({"price node": 0.0, "drain node": False})
    async with plane.operator() as operator:
        writers = [_prices(operator, ledger), _policies(operator, ledger), _versions(operator, ledger, artifacts)]
        running = asyncio.gather(*map(_until_cut_off, writers))
        ledger.published.clear()
        async with asyncio.timeout(30):
            await ledger.published.wait()
        # The moment is the point of the test: anywhere within some tens of transactions.
        await asyncio.sleep(chance.uniform(0.0, 0.4))
        await plane.kill()
        await running
    check_disk(plane)
    await plane.start()
    check_disk(plane)
    async with plane.operator() as operator:
        ledger.check(await facts(operator))
    return before - len(artifacts)


async def test_p3_a_control_plane_killed_in_its_first_moments_starts_the_next_time(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path / "plane")
    ca = plane.authority.ca_pem
    chance = random.Random(1)
    try:
        for _ in range(3):
            await plane.child.start()
            # Somewhere between the first import and the first answer.
            await asyncio.sleep(chance.uniform(0.3, 1.0))
            await plane.kill()
        await plane.start()
        check_disk(plane)
        async with plane.operator() as operator:
            assert await operator.nodes() == []
        assert plane.authority.ca_pem == ca
    finally:
        await plane.stop()
