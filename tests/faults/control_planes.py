"""A pair of control planes over one PostgreSQL, killed and frozen in turn while people write, nodes report and clients
call: what was acknowledged must be there, one at a time may act, and no call may notice.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from tritonclient.utils import InferenceServerException

from nearmesh.client import connect
from nearmesh.client.admin import AdminClient
from nearmesh.client.bootstrap import grpc_bootstrap, write_bootstrap
from nearmesh.errors import MeshError
from nearmesh.packaging.build import Artifact
from tests.integration.adding_model import adding
from tests.integration.island_mesh import GatewayProcess, line_client, stock_client
from tests.integration.mesh_processes import REGION, ControlPlane, Pair, node, pair, until
from tests.postgres import Postgres

Figures = dict[str, Any]

# What is promised: a lost leader is replaced within this.
REPLACED_WITHIN_S = 5.0
KINDS = ("leader killed", "follower killed", "leader frozen", "database restarted")
# Between two faults: the writers get something done, and what was killed is back.
CALM_S = 1.0
# Longer than the lease.
FROZEN_S = 4.0
# A writer that was refused turns to the other control plane after so long.
TURN_S = 0.05
CALL_EVERY_S = 0.02

# Every write by which a leader tells what it decided, in the order of their transactions.
WATCH_ACTS = """
CREATE TABLE acts (number BIGSERIAL PRIMARY KEY, term BIGINT NOT NULL, name TEXT NOT NULL, at TIMESTAMPTZ NOT NULL);
CREATE FUNCTION watch_acts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO acts (term, name, at) VALUES (NEW.term, NEW.name, clock_timestamp());
    RETURN NEW;
END $$;
CREATE TRIGGER watch_acts AFTER INSERT OR UPDATE ON decisions
FOR EACH ROW WHEN (NEW.name <> 'authority') EXECUTE FUNCTION watch_acts();
"""


@dataclass
class Writer:
    """Writes one fact over and over through whichever control plane takes it; knows what was acknowledged last."""

    name: str
    write: Callable[[AdminClient, int], Awaitable[Any]]
    planes: list[ControlPlane]
    acknowledged: int = 0
    asked: int = 0
    refused: int = 0

    async def run(self) -> None:
        """Through one control plane after the other, so that each decides by what the other wrote a moment ago."""
        async with AsyncExitStack() as stack:
            operators = [await stack.enter_async_context(plane.operator()) for plane in self.planes]
            for operator in itertools.cycle(operators):
                self.asked += 1
                try:
                    await self.write(operator, self.asked)
                    self.acknowledged = self.asked
                except MeshError:
                    self.refused += 1
                    await asyncio.sleep(TURN_S)


@dataclass
class Audited(Writer):
    """Makes tokens, of which the audit log must have every single one."""

    made: list[int] = field(default_factory=list)

    async def issue(self, operator: AdminClient, number: int) -> None:
        await operator.issue_token(f"subject-{number}", "client", lifetime_s=60.0)
        self.made.append(number)


@dataclass
class Calls:
    """A client that knows both control planes, calling all the time."""

    call: Callable[[], Awaitable[Any]]
    answered: int = 0
    errors: list[str] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            try:
                await self.call()
                self.answered += 1
            except (MeshError, AssertionError, InferenceServerException) as error:
                self.errors.append(str(error))
            await asyncio.sleep(CALL_EVERY_S)

    async def goes_on(self) -> None:
        """Until some more calls were answered."""
        wanted = self.answered + 10

        async def enough() -> bool:
            return self.answered >= wanted

        await until(enough, what=f"more answers; errors {self.errors[-3:]}")


@dataclass
class Scene:
    """Two control planes, a node that serves, writers and clients."""

    both: Pair
    server: Postgres
    url: str
    price: Writer
    deadline: Writer
    tokens: Audited
    clients: dict[str, Calls]
    replaced_s: list[float] = field(default_factory=list)
    published: int = 0

    async def kill(self, victim: ControlPlane) -> None:
        """kill -9, a look at what the other one knows, and a new start."""
        before, survivor = await self._term(), self.both.other(victim)
        led = victim is await self.both.leader()
        began = time.monotonic()
        await victim.kill()
        if led:
            await self._replaced(before, began)
        await self.check(survivor)
        made = await self._publish(survivor)
        await victim.start()
        await self.check(victim)
        await self._copied(victim, made)

    async def _publish(self, plane: ControlPlane) -> Artifact:
        """What one control plane alone acknowledged."""
        self.published += 1
        version = str(self.published)
        made = adding(plane.data.parent / f"package-{version}", "published", version, 1.0)
        async with plane.operator() as operator:
            await operator.publish(made)
        return made

    async def _copied(self, plane: ControlPlane, made: Artifact) -> None:
        """The other one has all of it once it is back."""
        blobs = [plane.data / "oci/blobs/sha256" / d.removeprefix("sha256:") for d in (made.digest, *made.blobs)]

        async def there() -> bool:
            return all(blob.exists() for blob in blobs)

        await until(there, what=f"{plane.public} has copied what was published")

    async def freeze(self, victim: ControlPlane) -> None:
        """SIGSTOP for longer than the lease; whoever wakes up finds that others lead."""
        before = await self._term()
        led = victim is await self.both.leader()
        began = time.monotonic()
        victim.child.signal(signal.SIGSTOP)
        try:
            if led:
                await self._replaced(before, began)
            await asyncio.sleep(max(0.0, FROZEN_S - (time.monotonic() - began)))
        finally:
            victim.child.signal(signal.SIGCONT)
        await self.check(self.both.other(victim))
        await self.check(victim)

    async def restart_database(self) -> None:
        """Away at once, and for longer than a lease: nobody leads, and both give out what they knew."""
        self.server.stop()
        try:
            await asyncio.sleep(FROZEN_S)
        finally:
            self.server.start()
        await self.both.leader()
        for plane in self.both.planes.values():
            await self.check(plane)

    async def _term(self) -> int:
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            row = await (await connection.execute("SELECT max(term) FROM terms")).fetchone()
            return int(row[0] or 0) if row else 0

    async def _replaced(self, term: int, began: float) -> None:
        async def taken() -> bool:
            return await self._term() > term

        await until(taken, within_s=2 * REPLACED_WITHIN_S, what="another control plane leads")
        self.replaced_s.append(time.monotonic() - began)

    async def check(self, plane: ControlPlane) -> None:
        """What was acknowledged before this moment is known there, soon."""
        price, deadline, made = self.price.acknowledged, self.deadline.acknowledged, list(self.tokens.made)
        async with plane.operator() as operator:

            async def known() -> bool:
                try:
                    prices = {one.id: one.usd_per_hour for one in await operator.nodes()}
                    model = await operator.model("adder")
                    audited = {one.subject for one in await operator.audit(1000) if one.action == "token"}
                except MeshError:
                    return False
                lately = made[-100:]
                return (
                    prices["node"] >= price
                    and model.deadline_ms >= deadline
                    and audited >= {f"subject-{number}" for number in lately}
                )

            await until(known, within_s=5.0, what=f"{plane.public} knows what was acknowledged")


@asynccontextmanager
async def scene(folder: Path, server: Postgres) -> AsyncIterator[Scene]:
    """All at work."""
    url = server.new_database()
    async with AsyncExitStack() as stack:
        both = await stack.enter_async_context(pair(folder, url))
        leader = await both.leader()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(WATCH_ACTS)
        async with leader.operator() as operator:
            await operator.publish(adding(folder / "package", "adder", "1", 1.0))
            await operator.deploy("adder", "1")
        agent = await stack.enter_async_context(node(leader, folder / "node", "node"))
        await agent.serves("adder", "1")
        planes = list(both.planes.values())
        price = Writer("price", lambda o, n: o.set_price("node", float(n)), planes)
        deadline = Writer("deadline", lambda o, n: o.set_policy("adder", deadline_ms=float(n)), planes[::-1])
        tokens = Audited("token", lambda o, n: tokens.issue(o, n), planes)
        clients = await _clients(stack, folder, leader, ",".join(plane.public for plane in planes))
        tasks = [asyncio.create_task(one.run()) for one in (price, deadline, tokens, *clients.values())]
        try:
            await until(_done(price, deadline, tokens), what="the first writes are acknowledged")
            yield Scene(both, server, url, price, deadline, tokens, clients)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _clients(stack: AsyncExitStack, folder: Path, plane: ControlPlane, control_planes: str) -> dict[str, Calls]:
    """One of each kind that follows routes, after its first answer."""
    bootstrap, ca = folder / "bootstrap.json", folder / "ca.pem"
    ca.write_bytes(plane.authority.ca_pem)
    write_bootstrap(bootstrap, grpc_bootstrap(control_planes, ca, plane.token(lifetime_s=3600.0), REGION))
    sdk = await stack.enter_async_context(connect(bootstrap, state=False))
    xds = await stack.enter_async_context(line_client(folder, "xds_client.py", GRPC_XDS_BOOTSTRAP=str(bootstrap)))
    question = {"x": np.array([1.0, 2.0], np.float32)}
    await until(lambda: _routed(sdk, question), what="the SDK has a route")
    await xds.knows("adder")
    door = GatewayProcess(plane, folder / "gateway", "door")
    stack.push_async_callback(door.child.stop)
    await door.start()
    stock = await stack.enter_async_context(stock_client(door.address))
    await stock.answers("adder")
    return {
        "sdk": Calls(lambda: sdk.infer("adder", question)),
        "xds": Calls(lambda: xds.node("adder")),
        "gateway": Calls(lambda: stock.adds("adder")),
    }


async def _routed(sdk: Any, question: Any) -> bool:
    try:
        await sdk.infer("adder", question)
    except MeshError:
        return False
    return True


def _done(*writers: Writer) -> Callable[[], Awaitable[bool]]:
    async def done() -> bool:
        return all(writer.acknowledged for writer in writers)

    return done


async def tried(folder: Path, server: Postgres, faults: int, seed: int) -> Figures:
    """`faults` of all kinds, one after another; what it came to."""
    chance, done = random.Random(seed), dict.fromkeys(KINDS, 0)
    async with scene(folder, server) as found:
        for number in range(faults):
            leader = await found.both.leader()
            # Each once; from then on by chance.
            kind = KINDS[number] if number < len(KINDS) else chance.choice(KINDS)
            victim = found.both.other(leader) if kind == "follower killed" else leader
            await asyncio.sleep(CALM_S * chance.random())
            if kind == "database restarted":
                await found.restart_database()
            else:
                await (found.freeze(victim) if kind == "leader frozen" else found.kill(victim))
            done[kind] += 1
            for client in found.clients.values():
                await client.goes_on()
        for plane in found.both.planes.values():
            await found.check(plane)
        assert {name: client.errors for name, client in found.clients.items()} == {name: [] for name in found.clients}
        assert max(found.replaced_s) < REPLACED_WITHIN_S, found.replaced_s
        return {
            "faults": done,
            "replaced_s": [round(seconds, 2) for seconds in found.replaced_s],
            "acts": await _check_acts(found),
            "acknowledged": {w.name: w.acknowledged for w in (found.price, found.deadline, found.tokens)},
            "published": found.published,
            "turned_away": sum(w.refused for w in (found.price, found.deadline, found.tokens)),
            "calls": {name: client.answered for name, client in found.clients.items()},
        }


async def _check_acts(found: Scene) -> Figures:
    """Each term has one holder, and what a leader wrote never comes after what a later one wrote."""
    async with await psycopg.AsyncConnection.connect(found.url) as connection:
        acts = await (await connection.execute("SELECT term FROM acts ORDER BY number")).fetchall()
        terms = await (await connection.execute("SELECT term, holder FROM terms ORDER BY term")).fetchall()
        lost = await (
            await connection.execute(
                "SELECT count(*) FROM unnest(%s::text[]) AS made(subject) "
                "WHERE NOT EXISTS (SELECT FROM audit WHERE audit.subject = made.subject AND action = 'token')",
                ([f"subject-{number}" for number in found.tokens.made],),
            )
        ).fetchone()
    assert lost == (0,), f"{lost} acknowledged tokens are not in the audit log"
    assert acts == sorted(acts), "a leader wrote after its term"
    numbers = [term for term, _ in terms]
    assert numbers == list(range(1, len(terms) + 1)), numbers
    return {"terms": len(terms), "written": len(acts), "terms_that_wrote": len(set(acts))}
