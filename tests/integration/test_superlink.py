"""A SuperLink as the control plane keeps it: there when needed, again when it dies, ended when idle; a stand-in
plays it."""

from __future__ import annotations

import asyncio
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nearmesh_controlplane.config import RunsConfig
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.runs import superlink
from nearmesh_controlplane.runs.engine import EngineAway
from nearmesh_controlplane.runs.superlink import SuperLink

from nearmesh.config import PathOrUrl
from nearmesh.devmesh.ports import free_ports
from nearmesh.errors import ConfigError, NotInstalled
from tests.integration.mesh_processes import until
from tests.signals import send

# Answers /health as the SuperLink does, keeps its database, and does not start with one that is "bad".
SUPERLINK = """
import argparse, http.server, pathlib, ssl, sys
parser = argparse.ArgumentParser()
for name in ("host", "ssl-certfile", "ssl-keyfile", "ssl-ca-certfile", "database", "isolation"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--superexec-auth-secret-file", type=pathlib.Path, required=True)
for name in ("enable-supernode-auth", "disable-runtime-dependency-installation"):
    parser.add_argument(f"--{name}", action="store_true", required=True)
args = parser.parse_args()
database = pathlib.Path(args.database)
if database.exists() and database.read_text() == "bad":
    sys.exit("the database is malformed")
database.write_text("good")
assert args.superexec_auth_secret_file.read_bytes()

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

server = http.server.ThreadingHTTPServer((args.host, args.port), Health)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(args.ssl_certfile, args.ssl_keyfile)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("up", flush=True)
server.serve_forever()
"""
SUPEREXEC = "import sys, time\nprint(*sys.argv[1:], flush=True)\ntime.sleep(600)\n"


@pytest.fixture(autouse=True)
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {superlink.SUPERLINK: SUPERLINK, superlink.SUPEREXEC: SUPEREXEC}.items():
        path = tmp_path / name
        path.write_text(f"#!{sys.executable} -I\n{text}")
        path.chmod(0o755)
    monkeypatch.setattr(superlink, "script", lambda name, package: str(tmp_path / name))


@asynccontextmanager
async def kept(folder: Path, config: RunsConfig | None = None) -> AsyncIterator[SuperLink]:
    link = SuperLink(config or RunsConfig(), Authority.open("m", folder / "authority"), folder / "flower")
    running = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()


async def that(check: Callable[[], object]) -> None:
    async def look() -> object:
        return check()

    await until(look, within_s=15.0)


async def test_it_runs_while_it_is_needed_and_not_longer(tmp_path: Path) -> None:
    async with kept(tmp_path, RunsConfig(idle_s=1.0)) as link:
        assert not link.up
        with pytest.raises(EngineAway):
            _ = link.client
        await link.needed()
        await link.needed()
        assert (await link.client.get(link.url("/health"))).status_code == 200
        first = link._superlink.pid
        link.not_needed()
        await link.needed()
        assert link._superlink.pid == first
        await that(lambda: link._superexec.pid)
        link.not_needed()
        link.not_needed()
        await that(lambda: not (link.up or link._superlink.pid or link._superexec.pid))
        await link.needed()
        assert link.up
    assert not (link.up or link._superlink.pid or link._superexec.pid)


async def test_it_is_started_again_at_the_same_address_when_it_dies(tmp_path: Path) -> None:
    async with kept(tmp_path) as link:
        await link.needed()
        address, superexec = link.address, await _pid(link)
        for _ in range(2):
            send(link._superlink.pid, signal.SIGKILL)
            await that(lambda: not link.up)
            await link.needed()
        # Who starts the server apps, and with it the server apps, lives on.
        assert (link.address, link._superexec.pid) == (address, superexec)
        send(superexec, signal.SIGKILL)
        await that(lambda: link._superexec.pid not in (0, superexec))
        asked = (tmp_path / "flower" / "superexec.log").read_text().splitlines()
        secret = tmp_path / "flower" / "superexec-secret"
        assert len(asked) >= 1
        assert all(f"--runtime-api-address {address}" in line and str(secret) in line for line in asked)
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


async def test_a_database_that_it_does_not_start_with_is_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = tmp_path / "flower" / "state.db"
    database.parent.mkdir()
    database.write_text("bad")
    async with kept(tmp_path) as link:
        await link.needed()
    assert (database.read_text(), database.with_name("state.db.bad").read_text()) == ("good", "bad")
    assert "the database is malformed" in caplog.text


async def test_one_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / superlink.SUPERLINK).write_text("#!/bin/sh\necho no such option >&2\nexit 2\n")
    monkeypatch.setattr(superlink, "START_WITHIN_S", 0.5)
    async with kept(tmp_path) as link:
        with pytest.raises(EngineAway, match=r"does not start; .*superlink.log says: no such option"):
            await link.needed()


async def test_without_flower_a_run_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str) -> str:
        raise NotInstalled(f"pip install '{package}[rounds]'")

    monkeypatch.setattr(superlink, "script", missing)
    async with kept(tmp_path) as link:
        with pytest.raises(NotInstalled, match=r"nearmesh-controlplane\[rounds\]"):
            await link.needed()


async def test_one_that_somebody_else_runs_is_used_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path / "theirs") as theirs:
        await theirs.needed()
        ca, secret = tmp_path / "theirs" / "flower" / "tls" / "ca.pem", tmp_path / "theirs" / "flower"
        config = RunsConfig(
            superlink=theirs.address,
            ca=PathOrUrl(str(ca)),
            superexec_secret=PathOrUrl(str(secret / "superexec-secret")),
        )
        async with kept(tmp_path / "ours", config) as ours:
            await ours.needed()
            assert (ours.address, ours._superlink.pid) == (theirs.address, 0)
            assert (await ours.client.get(ours.url("/health"))).is_success
            await that(lambda: ours._superexec.pid)
            theirs_pid = theirs._superlink.pid
        assert theirs._superlink.pid == theirs_pid
        monkeypatch.setattr(superlink, "START_WITHIN_S", 0.3)
        (port,) = free_ports(1)
        nobody = RunsConfig(superlink=f"127.0.0.1:{port}", ca=PathOrUrl(str(ca)))
        async with kept(tmp_path / "ours", nobody) as ours:
            with pytest.raises(EngineAway, match=rf"127.0.0.1:{port} .* does not answer"):
                await ours.needed()


async def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    nowhere = PathOrUrl(str(tmp_path / "nowhere"))
    async with kept(tmp_path, RunsConfig(superlink="cp:1", ca=nowhere)) as link:
        with pytest.raises(ConfigError, match=r"\[runs\] ca: .*nowhere cannot be used"):
            await link.needed()
    async with kept(tmp_path, RunsConfig(superlink="cp:1", ca=nowhere, superexec_secret=nowhere)) as link:
        with pytest.raises(ConfigError, match=r"\[runs\] superexec_secret: there is no file .*nowhere"):
            await link.needed()


async def _pid(link: SuperLink) -> int:
    await that(lambda: link._superexec.pid)
    return link._superexec.pid
