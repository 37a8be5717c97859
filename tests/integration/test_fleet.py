"""Flower as it comes, through the control plane: a real SuperLink, real SuperNodes, and the one way between them."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from benchmarks.flower_fleet import Fleet, fleet_in
from nearmesh.errors import InvalidInput
from nearmesh.ssh_keys import ssh_line
from nearmesh.tls import new_key
from tests.integration.mesh_processes import until
from tests.signals import send

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

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
from nearmesh_controlplane.rounds.asking import push

app = ServerApp()


def unheard(grid):
    # The first object is stored, and the word of it is lost with its SuperLink: Flower's client sends it again.
    client, real = grid._runtime_client, grid._runtime_client.PushObject

    def twice(request):
        client.PushObject = real
        real(request)
        again = real(request)
        assert not again.stored, "then there is nothing to bear"
        return again

    client.PushObject = twice


@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    asked = RecordDict({{"asked": ConfigRecord({{"bytes": bytes({BYTES})}})}})
    while True:
        messages = [Message(asked, message_type="query", dst_node_id=node) for node in nodes]
        try:
            unheard(grid)
            (id,) = push(grid, messages)
            until_s = time.monotonic() + 20.0
            while not (answers := list(grid.pull_messages([id]))) and time.monotonic() < until_s:
                time.sleep(0.5)
        except httpx.HTTPError as error:
            print("the SuperLink died:", error)
            continue
        # Flower gives up what was on its way when the SuperLink died.
        if answers and answers[0].has_content():
            break
    Path(context.run_config["out"]).write_text(str(answers[0].content["said"]["length"]))
"""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with fleet_in(tmp_path_factory.mktemp("fleet")) as found:
        yield found


def asking(folder: Path) -> Path:
    app = folder / "asking-app"
    (app / "asking").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    for name, text in {"__init__": "", "client": CLIENT, "server": SERVER}.items():
        (app / "asking" / f"{name}.py").write_text(text)
    return app


# Flower gives up what was just being sent only after 180 s.
@pytest.mark.timeout(300)
async def test_a_node_that_trains_takes_part_until_it_is_removed(fleet: Fleet) -> None:
    key = new_key()
    line = await fleet.joins("node-a", key)
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
        send(fleet.superlink._superlink.pid, signal.SIGKILL)
        await until(down, within_s=5.0)
        await fleet.engine.prepare()
        assert (await fleet.ended(run, within_s=240.0)).state == "finished", await fleet.engine.log(run)
        assert out.read_text() == str(BYTES)
        # Its next call is refused, upon which a SuperNode ends.
        await fleet.registry.remove("node-a")
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
