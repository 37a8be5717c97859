"""The node's part in retrieval: keeps the process running that has its vectors, and answers for it."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from nearmesh.backoff import Backoff
from nearmesh.errors import DeadlineExceeded, MeshError, NotReady
from nearmesh.process import leashed
from nearmesh.tls import Credentials, write_private
from nearmesh.transport.server import Server
from nearmesh.v1 import node_pb2
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.engines.cores import usable_cores
from nearmesh_agent.vectors import namespaces
from nearmesh_agent.vectors.across.links import Links
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.channel import VectorChannel
from nearmesh_agent.vectors.config import VectorsConfig
from nearmesh_agent.vectors.front import SERVICE, Embedder, Front, Nowhere
from nearmesh_agent.vectors.settings import MAX_SOCKET_BYTES, Settings

log = logging.getLogger(__name__)

NEEDED = {"faiss": "faiss-cpu", "milvus_lite": "milvus-lite", "pymilvus": "pymilvus", "tantivy": "tantivy"}
NOT_INSTALLED = "lacks {}: pip install 'nearmesh-agent[vectors]'"
# Between two starts of one that ends by itself; after one that ran for longer than STEADY_S, the first again.
FIRST_WAIT_S, LONGEST_WAIT_S, STEADY_S = 0.1, 5.0, 5.0
# What it says of its collections is looked at so often.
LOOK_EVERY_S = 2.0
# One that answers nothing for so long hangs, and is started anew.
SILENT_S = 20.0
# Its end: it saves its indexes, which makes the next start quick. What was acknowledged is on disk in any case.
STOP_WITHIN_S = 6.0
# Libraries that compute in threads begin as many as there are cores unless told; these belong to inference.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PROGRAM = (sys.executable, "-m", "nearmesh_agent.vectors.process")


class Vectors:
    """Nothing at all where the operator has not enabled it."""

    def __init__(
        self,
        config: VectorsConfig,
        folder: Path,
        at: Here,
        *,
        max_message_bytes: int,
        nodes: Callable[[], Sequence[node_pb2.VectorNode]] = lambda: (),
        credentials: Callable[[], Credentials] | None = None,
        embedder: Embedder | None = None,
        on_change: Callable[[], None] = lambda: None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        """`folder` is the vectors' own, below the node's data. `on_change` has the node report at once.

        `nodes` are all that keep vectors, as the control plane said last; without `credentials` it has nothing to do
        with others.
        """
        self._config = config
        self._folder = folder.absolute()
        self._at = at
        self._nodes = nodes
        self._max_message_bytes = max_message_bytes
        self._on_change = on_change
        self._program = program
        self._channel: VectorChannel | None = None
        # Why the vectors cannot be asked for; empty: they can.
        self.detail = "" if not config.enabled else "they are being opened"
        # As of the last look.
        self.collections: Sequence[pb.Collection] = ()
        self.front = Front(config, lambda: self._channel, embedder=embedder)
        if config.enabled and credentials:
            self.front.links = Links(
                at,
                nodes,
                credentials,
                self.front.there,
                max_message_bytes=max_message_bytes,
                embed=partial(embedder.embed, behind=True) if embedder else None,
            )
        # Where its socket lies while its own folder has too long a name.
        self._private: Path | None = None
        # Of the process, 0 while there is none; and how often it has ended by itself.
        self.pid = 0
        self.ended = 0

    @property
    def enabled(self) -> bool:
        return self._config.enabled

    @property
    def channel(self) -> VectorChannel | None:
        """To the process; None while it does not answer."""
        return self._channel

    def add_to(self, server: Server) -> None:
        """What the node answers."""
        (self.front if self._config.enabled else Nowhere(self._at, self._nodes)).add_to(server)
        if self.front.links:
            self.front.links.add_to(server)

    def status(self) -> node_pb2.VectorStatus | None:
        """None where it keeps no vectors."""
        if not self._config.enabled:
            return None
        return node_pb2.VectorStatus(
            collections=len(self.collections),
            rows=sum(one.rows for one in self.collections),
            bytes=sum(one.bytes for one in self.collections),
            detail=self.detail,
        )

    async def run(self) -> None:
        """For as long as the agent does; cancelled, it ends the process in order."""
        if not self._config.enabled:
            return
        if missing := [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]:
            self.detail = NOT_INSTALLED.format(", ".join(missing))
            log.error("[vectors] is enabled in node.toml, and the node %s", self.detail)
            return
        while True:
            kept = asyncio.create_task(self._all())
            try:
                await asyncio.wait({kept})
            finally:
                kept.cancel()
                await asyncio.wait({kept})
                if self._private:
                    shutil.rmtree(self._private, ignore_errors=True)
                    self._private = None
            # Inference goes on, whatever is wrong with the vectors.
            log.error("the vectors are begun anew in %s s", LONGEST_WAIT_S, exc_info=kept.exception())
            self._say("something is wrong with them; the node's log has the cause")
            await asyncio.sleep(LONGEST_WAIT_S)

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep())
            if self.front.links:
                tasks.create_task(self.front.links.run())

    async def _keep(self) -> None:
        """A process, and another one when it ends."""
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        while True:
            began_s = time.monotonic()
            try:
                await self._once()
            except OSError as error:
                # A full disk, or no more processes.
                self._say(f"their process cannot be started: {error.strerror or type(error).__name__}")
                log.error("the vectors' process cannot be started: %s", error)
            if time.monotonic() - began_s > STEADY_S:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    async def _once(self) -> None:
        """One process, from its start to its end."""
        settings = await asyncio.to_thread(self._prepare)
        # From the loop's own thread, which lives as long as the agent.
        process = await asyncio.create_subprocess_exec(
            *leashed([*self._program, str(settings.path / Settings.FILE)]),
            stdin=asyncio.subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        self.pid = process.pid
        log.info("vectors: process started pid=%d", process.pid)
        looking = asyncio.create_task(self._look(settings, process))
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({looking, ended}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                # A bug, or the process hangs.
                await looking
                process.kill()
            code = await ended
        finally:
            ended.cancel()
            self.pid = 0
            looking.cancel()
            await asyncio.wait({looking})
            await _end(process)
        # Not reached when it was told to end.
        self.ended += 1
        self._say(f"their process ended with code {code} and is started again")
        log.warning("the vectors' process ended with code %s and is started again", code)

    def _prepare(self) -> Settings:
        """Its file, and a folder for its socket where its own has too long a name. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        socket = self._folder / "socket"
        if len(os.fsencode(socket)) > MAX_SOCKET_BYTES:
            self._private = self._private or Path(tempfile.mkdtemp(prefix="nearmesh-vectors-"))
            socket = self._private / "socket"
        settings = Settings(
            folder=str(self._folder),
            socket=str(socket),
            node=self._at.node,
            site=self._at.site,
            region=self._at.region,
            threads=max(2, usable_cores()),
            max_message_bytes=self._max_message_bytes,
            log_level=logging.getLevelName(log.getEffectiveLevel()).lower(),
            config=self._config,
        )
        write_private(self._folder / Settings.FILE, settings.to_bytes())
        return settings

    async def _look(self, settings: Settings, process: asyncio.subprocess.Process) -> None:
        """Connects, and keeps what the process says of its collections. Returns when it is silent for too long."""
        channel = VectorChannel(settings.socket)
        try:
            while not await channel.ready(LOOK_EVERY_S):
                pass
            self._channel = channel
            self._say("")
            heard_s = time.monotonic()
            while time.monotonic() < heard_s + SILENT_S:
                if await self._ask(channel):
                    heard_s = time.monotonic()
                await asyncio.sleep(LOOK_EVERY_S)
            log.error("the vectors' process pid=%d has not answered for %s s and is killed", process.pid, SILENT_S)
        finally:
            self._channel = None
            self.collections = ()
            await channel.close()

    async def _ask(self, channel: VectorChannel) -> bool:
        """Whether it has answered, if only by an error."""
        request = pb.ListCollectionsRequest(namespace=namespaces.ANY).SerializeToString()
        try:
            answer = await channel.call(
                f"/{SERVICE}/ListCollections", request, reach=namespaces.ANY, timeout_s=SILENT_S
            )
            self.collections = pb.ListCollectionsResponse.FromString(answer).collections
            await self.front.looked_at(self.collections)
        except (MeshError, OSError) as error:
            self._say(str(error))
            return not isinstance(error, DeadlineExceeded | NotReady)
        self._say("")
        return True

    def _say(self, detail: str) -> None:
        if detail != self.detail:
            self.detail = detail
            self._on_change()


def environment(own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of the process: the agent's, and one thread for each call of a library."""
    return {**dict.fromkeys(_THREADS, "1"), **own}


async def _end(process: asyncio.subprocess.Process) -> None:
    """Safe to repeat."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_WITHIN_S):
            await process.wait()
    except TimeoutError:
        log.warning("the vectors' process did not end within %s s and is killed", STOP_WITHIN_S)
        process.kill()
        await process.wait()
