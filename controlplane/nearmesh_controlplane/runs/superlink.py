"""Flower's SuperLink, which federated runs go through: the control plane's own, or one that somebody else runs.

Its own is a process on loopback that is started when a run needs it, started again when it dies, and ended when none
has needed it for a while. Its Control API asks nobody who they are, so that nothing but this machine reaches it; nodes
reach its Fleet API through the control plane's HTTPS listener (`web.fleet_api`). Beside either one runs a SuperExec,
which starts the runs' server apps here, where the runs' folders are.

All that counts of a run is in its folder: the SuperLink's database only keeps a run going over the SuperLink's death,
and one that the SuperLink cannot start with is put aside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from nearmesh import addresses
from nearmesh.errors import ConfigError
from nearmesh.flower_processes import environment, script
from nearmesh.process import has_died
from nearmesh.tls import Credentials, write_once, write_private
from nearmesh_controlplane.config import RunsConfig
from nearmesh_controlplane.registry.authority import Authority
from nearmesh_controlplane.rounds import stock
from nearmesh_controlplane.runs.child import Child, Pauses
from nearmesh_controlplane.runs.engine import EngineAway

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
SUPERLINK, SUPEREXEC, PACKAGE = "flower-superlink", "flower-superexec", "nearmesh-controlplane"
# A SuperLink is there after some seconds; on a machine that is busy with other things after more.
START_WITHIN_S = 60.0
LOOK_EVERY_S = 0.1
# So many starts that came to nothing, and the database is taken for the reason.
STARTS_WITH_ONE_DATABASE = 3
# Of its answers. A piece of an array is at most some megabytes, and the SuperLink is near.
TIMEOUT = httpx.Timeout(60.0, connect=5.0)
LIMITS = httpx.Limits(max_connections=512, max_keepalive_connections=64)


class SuperLink:
    """The SuperLink that runs of this control plane go through."""

    def __init__(self, config: RunsConfig, authority: Authority, folder: Path) -> None:
        """Keeps what has to be kept in `folder`."""
        self._config = config
        self._authority = authority
        self._folder = folder
        self._port = 0
        self._wanted, self._released, self._up = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._superlink = Child("superlink", folder / "superlink.log")
        self._superexec = Child("superexec", folder / "superexec.log")
        self._client: httpx.AsyncClient | None = None
        # Trusts nobody until one is needed: to read whom this machine trusts takes a while.
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    @property
    def address(self) -> str:
        return self._config.superlink or addresses.joined(LOOPBACK, self._port)

    @property
    def up(self) -> bool:
        """Whether there is one to talk to."""
        return self._up.is_set()

    @property
    def client(self) -> httpx.AsyncClient:
        """For calls to it, at `url`. Raises EngineAway where none is wanted."""
        if self._client is None:
            raise EngineAway("no SuperLink is running, since no run needs one")
        return self._client

    def url(self, path: str) -> str:
        return f"https://{self.address}{path}"

    async def needed(self) -> None:
        """Returns when it is there; it stays so until `not_needed`. Raises NotInstalled, ConfigError, EngineAway."""
        script(SUPEREXEC, PACKAGE)
        self._context = self._trusting()
        self._released.clear()
        self._wanted.set()
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await self._up.wait()
        except TimeoutError:
            raise EngineAway(self._absence()) from None

    def not_needed(self) -> None:
        """It may end after an idle time. Safe to repeat."""
        self._wanted.clear()
        self._released.set()

    async def run(self) -> None:
        """For as long as the control plane does."""
        while True:
            await self._wanted.wait()
            async with self._talking(), asyncio.TaskGroup() as tasks:
                kept = [
                    tasks.create_task(self._watch() if self._config.superlink else self._keep_superlink()),
                    tasks.create_task(self._keep_superexec()),
                ]
                await self._until_idle()
                for task in kept:
                    task.cancel()

    async def _until_idle(self) -> None:
        while True:
            await self._released.wait()
            try:
                async with asyncio.timeout(self._config.idle_s):
                    await self._wanted.wait()
            except TimeoutError:
                log.info("no run needs the SuperLink")
                return

    @contextlib.asynccontextmanager
    async def _talking(self) -> AsyncIterator[None]:
        # It stays the same, so that server apps which run find the SuperLink again that was started anew.
        self._port = self._port or addresses.free_port(LOOPBACK)
        async with httpx.AsyncClient(verify=self._context, timeout=TIMEOUT, limits=LIMITS, trust_env=False) as client:
            self._client = client
            try:
                yield
            finally:
                self._up.clear()
                self._client = None

    # Its own

    async def _keep_superlink(self) -> None:
        pauses, in_vain = Pauses(), 0
        while True:
            pauses.started()
            try:
                in_vain = 0 if await self._once() else in_vain + 1
            except OSError as error:
                # A full disk, or no more processes.
                log.error("the SuperLink cannot be started: %s", error)
            else:
                log.warning("the SuperLink ended and is started again: %s", self._superlink.last_words(1) or "silently")
            if in_vain:
                await self._another_port()
            if in_vain == STARTS_WITH_ONE_DATABASE:
                self._put_database_aside()
            await pauses.wait()

    async def _once(self) -> bool:
        """Starts it and waits for its end; whether it was there in between."""
        fresh = self._authority.server_credentials([LOOPBACK])
        fresh.write(self._folder / "tls")
        try:
            await self._superlink.start(self._superlink_command(), self._environment())
            ended = asyncio.create_task(self._superlink.ended())
            came_up = await self._comes_up(ended)
            # One whose certificate grows old is started anew; everybody who talks to it waits for it.
            await asyncio.wait({ended}, timeout=fresh.renew_in_s())
            return came_up
        finally:
            self._up.clear()
            await self._superlink.stop()

    def _superlink_command(self) -> list[str]:
        tls = self._folder / "tls"
        return [
            *(script(SUPERLINK, PACKAGE), "--host", LOOPBACK, "--port", str(self._port)),
            *("--ssl-certfile", str(tls / Credentials.CERTIFICATE), "--ssl-keyfile", str(tls / Credentials.KEY)),
            *("--ssl-ca-certfile", str(tls / Credentials.CA), "--database", str(self._database)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(self._secret())),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
        ]

    async def _comes_up(self, ended: asyncio.Task[int]) -> bool:
        """Whether it answered before it ended."""
        while not ended.done():
            if await self._answers():
                log.info("the SuperLink answers address=%s", self.address)
                self._up.set()
                return True
            await asyncio.wait({ended}, timeout=LOOK_EVERY_S)
        return False

    async def _another_port(self) -> None:
        """Somebody may have taken it meanwhile. Server apps that run keep to the old one, and so they end."""
        self._port = addresses.free_port(LOOPBACK)
        await self._superexec.stop()

    def _put_database_aside(self) -> None:
        log.error("the SuperLink does not start with its database, which is put aside as %s.bad", self._database)
        for path in self._folder.glob(f"{self._database.name}*"):
            if path.suffix != ".bad":
                path.replace(path.with_name(f"{path.name}.bad"))

    @property
    def _database(self) -> Path:
        return self._folder / "state.db"

    # Either one

    def note(self, run: str, folder: Path) -> None:
        """In which folder the rounds of a Flower run belong, for whoever watches its app."""
        write_private(self._observed / run, str(folder.absolute()).encode())
        for noted in self._observed.iterdir():
            if not Path(noted.read_text("utf-8")).exists():
                noted.unlink()

    def server_app_died(self, run: str) -> bool:
        """Whether the server app of a Flower run was here and is gone."""
        return has_died(self._alive / run)

    @property
    def _alive(self) -> Path:
        return self._folder / "alive"

    @property
    def _observed(self) -> Path:
        return self._folder / "observed"

    async def _watch(self) -> None:
        """Looks whether the one that somebody else runs is there."""
        while True:
            if await self._answers():
                self._up.set()
            else:
                self._up.clear()
            await asyncio.sleep(1.0)

    async def _answers(self) -> bool:
        try:
            return (await self.client.get(self.url("/health"), timeout=2.0)).is_success
        except httpx.HTTPError:
            return False

    async def _keep_superexec(self) -> None:
        pauses = Pauses()
        # Of runs that are over.
        for left in (self._folder / "home" / "apps", self._alive):
            await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)
        while True:
            await self._up.wait()
            pauses.started()
            try:
                await self._superexec.start(self._superexec_command(), self._environment())
                await self._superexec.ended()
            except OSError as error:
                log.error("the SuperExec cannot be started: %s", error)
            else:
                log.warning("the SuperExec ended and is started again: %s", self._superexec.last_words(1) or "silently")
            finally:
                await self._superexec.stop()
            await pauses.wait()

    def _environment(self) -> dict[str, str]:
        """Server apps run in a program that watches those of a data team's own."""
        home, watching = self._folder / "home", (sys.executable, "-m", stock.__name__)
        told = {stock.OBSERVED: str(self._observed), stock.ALIVE: str(self._alive)}
        return environment(home, instead={"flwr-serverapp": watching}) | told

    def _superexec_command(self) -> list[str]:
        ca = self._config.ca or str(self._folder / "tls" / Credentials.CA)
        secret = self._config.superexec_secret if self._config.superlink else str(self._secret())
        return [
            *(script(SUPEREXEC, PACKAGE), "--runtime-api-address", self.address, "--root-certificates", ca),
            *(("--superexec-auth-secret-file", secret) if secret else ()),
        ]

    def _secret(self) -> Path:
        """By which the SuperLink knows its SuperExec from whoever else is on this machine."""
        path = self._folder / "superexec-secret"
        if not path.exists():
            write_once(path, secrets.token_hex(32).encode())
        return path

    def _trusting(self) -> ssl.SSLContext:
        """Raises ConfigError for files of mesh.toml that are not there or not what they should be."""
        if not self._config.superlink:
            return ssl.create_default_context(cadata=self._authority.ca_pem.decode())
        secret = self._config.superexec_secret
        if secret and not Path(secret).is_file():
            raise ConfigError(f"[runs] superexec_secret: there is no file {secret}")
        try:
            return ssl.create_default_context(cafile=self._config.ca)
        except OSError as error:
            raise ConfigError(f"[runs] ca: {self._config.ca} cannot be used: {error}") from None

    def _absence(self) -> str:
        if self._config.superlink:
            return f"the SuperLink at {self._config.superlink} ([runs] in mesh.toml) does not answer"
        said = self._superlink.last_words()
        return f"the SuperLink does not start; {self._folder / 'superlink.log'} says: {said or 'nothing'}"
