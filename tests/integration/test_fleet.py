"""Flower as it comes, through the control plane: a real SuperLink, real SuperNodes, and the one way between them."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from nearmesh_controlplane.config import RunsConfig
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.registry.training import Training
from nearmesh_controlplane.runs.child import Child
from nearmesh_controlplane.runs.engine import ENDED, EngineStatus
from nearmesh_controlplane.runs.flower import FlowerEngine
from nearmesh_controlplane.runs.superlink import SuperLink
from nearmesh_controlplane.web.fleet_api import FleetApi
from nearmesh_controlplane.web.peer import HttpsServer
from starlette.responses import PlainTextResponse

from nearmesh.devmesh.ports import free_ports
from nearmesh.errors import InvalidInput
from nearmesh.flower_processes import environment, script
from nearmesh.ssh_keys import ssh_line
from nearmesh.tls import Credentials, new_key
from nearmesh.v1 import node_pb2
from tests.control_plane_state import State, state
from tests.integration.mesh_processes import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROJECT = """
[project]
name = "asking"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "mesh"

[tool.flwr.app.components]
serverapp = "asking.server:app"
clientapp = "asking.client:app"

[tool.flwr.app.config]
out = ""
"""
CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message, context):
    said = dict(message.content["asked"])
    return Message(RecordDict({"said": ConfigRecord({"length": len(said["bytes"])})}), reply_to=message)
"""
# More than one piece of what Flower sends at a time.
BYTES = 12_000_000
SERVER = f"""
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    asked = RecordDict({{"asked": ConfigRecord({{"bytes": bytes({BYTES})}})}})
    messages = [Message(asked, message_type="query", dst_node_id=node) for node in nodes]
    (answer,) = grid.send_and_receive(messages)
    Path(context.run_config["out"]).write_text(str(answer.content["said"]["length"]))
"""


@dataclass(slots=True)
class Fleet:
    """A control plane's parts that have to do with Flower, served on loopback."""

    folder: Path
    authority: Authority
    mesh: State
    training: Training
    superlink: SuperLink
    engine: FlowerEngine
    address: str

    def allows(self, node: str, key: ec.EllipticCurvePrivateKey) -> str:
        """The node says that it trains; its key's line."""
        line = ssh_line(key.public_key())
        self.training.heard(node, node_pb2.NodeStatus(training=node_pb2.TrainingStatus(public_key=line)), line)
        return line

    @asynccontextmanager
    async def supernode(self, name: str, key: ec.EllipticCurvePrivateKey) -> AsyncIterator[Child]:
        folder = self.folder / name
        folder.mkdir()
        (folder / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        (folder / "ca.pem").write_bytes(self.authority.ca_pem)
        (port,) = free_ports(1)
        child = Child(name, folder / "supernode.log")
        command = [
            *(script("flower-supernode", "nearmesh-agent"), "--superlink", self.address),
            *("--root-certificates", str(folder / "ca.pem"), "--auth-supernode-private-key", str(folder / "key")),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]
        await child.start(command, environment(folder / "flower"))
        try:
            yield child
        finally:
            await child.stop()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    authority = Authority.open("test-mesh", folder / "authority")
    authority.server_credentials(["127.0.0.1"]).write(folder / "server")
    (port,) = free_ports(1)
    async with state(folder) as mesh:
        training = Training(mesh.registry, mesh.changes, time.monotonic)
        # Long ago.
        training._began_at = -1e9
        superlink = SuperLink(RunsConfig(), authority, folder / "flower")
        https = HttpsServer(
            FleetApi(PlainTextResponse(""), superlink, training),
            address=f"127.0.0.1:{port}",
            certificate=folder / "server" / Credentials.CERTIFICATE,
            key=folder / "server" / Credentials.KEY,
            ca=folder / "server" / Credentials.CA,
        )
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(https.run_until_stopped()), tasks.create_task(superlink.run())]
            engine = FlowerEngine(superlink)
            await engine.prepare()
            yield Fleet(folder, authority, mesh, training, superlink, engine, f"127.0.0.1:{port}")
            https.should_exit = True
            running[1].cancel()


async def ended(fleet: Fleet, run: str) -> EngineStatus:
    async def look() -> EngineStatus | None:
        found = await fleet.engine.status(run)
        return found if found.state in ENDED else None

    return await until(look, within_s=60.0)


def asking(folder: Path) -> Path:
    app = folder / "asking-app"
    (app / "asking").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    for name, text in {"__init__": "", "client": CLIENT, "server": SERVER}.items():
        (app / "asking" / f"{name}.py").write_text(text)
    return app


async def test_a_node_that_trains_takes_part_until_it_is_removed(fleet: Fleet) -> None:
    await fleet.mesh.node("node-a")
    key = new_key()
    line = fleet.allows("node-a", key)
    ids = await fleet.engine.register({"node-a": line})
    assert await fleet.engine.register({"node-a": line}) == ids
    out = fleet.folder / "out.txt"
    async with fleet.supernode("node-a", key) as supernode:
        run = await fleet.engine.start(asking(fleet.folder), {"out": str(out)})

        async def online() -> bool:
            return await fleet.engine.online() == {ids["node-a"]}

        async def down() -> bool:
            return not fleet.superlink.up

        await until(online, within_s=30.0, what=supernode.last_words(20))
        # A SuperLink that dies takes nothing with it.
        os.kill(fleet.superlink._superlink.pid, signal.SIGKILL)
        await until(down, within_s=5.0)
        await fleet.engine.prepare()
        assert (await ended(fleet, run)).state == "finished", await fleet.engine.log(run)
        assert out.read_text() == str(BYTES)
        # Its next call is refused, upon which a SuperNode ends.
        await fleet.mesh.registry.remove("node-a")
        async with asyncio.timeout(15.0):
            await supernode.ended()


async def test_p8_a_key_that_no_node_has_said_is_refused(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    key = new_key()
    ids = await fleet.engine.register({"stranger": ssh_line(key.public_key())})
    with caplog.at_level("INFO", "nearmesh_controlplane.web.fleet_api"):
        async with fleet.supernode("stranger", key) as supernode, asyncio.timeout(30.0):
            await supernode.ended()
    assert not await fleet.engine.online() & {*ids.values()}
    assert "path=/v1/fleet/activate-node: the SuperNode's key is not of a node of this mesh" in caplog.text


@pytest.mark.parametrize("path", ["/v1/control/list-nodes", "/v1/runtime/acquire-task", "/v1/fleet/register-node"])
async def test_p8_nothing_else_of_the_superlink_is_reached(fleet: Fleet, path: str) -> None:
    trusting = ssl.create_default_context(cadata=fleet.authority.ca_pem.decode())
    async with httpx.AsyncClient(verify=trusting) as client:
        answer = await client.post(f"https://{fleet.address}{path}", content=b"")
        assert answer.status_code == 404
        # Which of the SuperLink's are there.
        assert (await client.post(fleet.superlink.url(path), content=b"")).status_code != 404


async def test_an_app_that_flower_refuses_says_why(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Key 'nonsense' is not present"):
        await fleet.engine.start(asking(tmp_path), {"nonsense": 1})
    (tmp_path / "asking-app" / "pyproject.toml").write_text('[project]\nname = "asking"\nversion = "1"\n')
    with pytest.raises(InvalidInput, match="Invalid Flower App configuration"):
        await fleet.engine.start(tmp_path / "asking-app", {})


async def test_a_run_that_the_superlink_does_not_know_is_lost(fleet: Fleet) -> None:
    assert (await fleet.engine.status("12345")).state == "lost"
    await fleet.engine.stop("12345")
