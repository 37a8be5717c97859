"""A throw-away Milvus server, standalone, from PyPI's `milvus`: an old one, which asks the most of its users."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nearmesh.devmesh.ports import free_ports
from nearmesh.process import leashed

START_WITHIN_S = 90.0
STOP_WITHIN_S = 10.0
# As it is by itself.
SILENT_S = 30
# Of the user that every new server has.
TOKEN = "root:Milvus"
# How often it looks at what there is to do, in ms: by itself each second or so, and a table that is made or written out
# waits for several looks in turn.
_EAGER = dict.fromkeys(
    (
        "DATACOORD_SEGMENT_ASSIGNMENTEXPIRATION",
        "INDEXCOORD_SCHEDULER_INTERVAL",
        "QUERYCOORD_CHECKCHANNELINTERVAL",
        "QUERYCOORD_CHECKINDEXINTERVAL",
        "QUERYCOORD_CHECKINTERVAL",
        "QUERYCOORD_CHECKSEGMENTINTERVAL",
        "QUERYCOORD_DISTPULLINTERVAL",
    ),
    "100",
) | {"PROXY_TIMETICKINTERVAL": "50"}


def why_not() -> str:
    """Why there can be no server here; empty when there can."""
    if importlib.util.find_spec("milvus") is None:
        return "no Milvus server: pip install milvus==2.3.5"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"PyPI's milvus has no server for {platform.system()} on {platform.machine()}"
    return ""


class MilvusServer:
    """One in a folder of its own, on ports that stay its own; who asks it has to bring the token."""

    def __init__(self, folder: Path, *, silent_s: int = SILENT_S) -> None:
        """`silent_s`: a part of it that has said nothing for so long is gone to the others.

        So are those that were killed with a server, to the next one, which loads nothing before.
        """
        from milvus import MilvusServerConfig

        self._folder, self._silent_s = folder, silent_s
        config = MilvusServerConfig(data_dir=str(folder))
        names = [name for name in config.configurable_items if name.endswith("_port")]
        *ports, self._health, self._etcd_clients, self._etcd_peers = free_ports(len(names) + 3)
        config.update(**dict(zip(names, ports, strict=True)))
        config.set("authorization_enabled", True)
        config.resolve()
        self.uri = f"http://127.0.0.1:{config.get('proxy_port')}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers. To be called in the main thread: the server ends with its caller's."""
        programs = _unpacked()
        etcd = self._folder / "etcd.yaml"
        etcd.write_text(_etcd(self._folder, self._etcd_clients, self._etcd_peers))
        environment = {
            **os.environ,
            **_EAGER,
            "COMMON_SESSION_TTL": str(self._silent_s),
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(self._health),
            "ETCD_CONFIG_PATH": str(etcd),
            "ETCD_ENDPOINTS": f"127.0.0.1:{self._etcd_clients}",
            "MILVUS_RUN_DIR": str(self._folder / "run"),
            "LD_LIBRARY_PATH": str(programs),
        }
        with (self._folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                leashed([str(programs / "milvus"), "run", "standalone"]),
                cwd=self._folder,
                env=environment,
                stdout=output,
                stderr=output,
            )
        end = time.monotonic() + START_WITHIN_S
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"Milvus did not start:\n{self.last_words()}")
            time.sleep(0.1)

    def kill(self) -> None:
        """As a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_WITHIN_S)

    def stop(self) -> None:
        """What it keeps is thrown away: an orderly end would take it twenty seconds."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def last_words(self) -> str:
        return (self._folder / "log").read_text("utf-8", "replace")[-2000:]

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._health}/healthz", timeout=5) as answer:
                return b"OK" in answer.read()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def _etcd(folder: Path, clients: int, peers: int) -> str:
    """Its own etcd would listen on that one's usual ports otherwise, of which a machine has one pair."""
    clients_url, peers_url = f"http://127.0.0.1:{clients}", f"http://127.0.0.1:{peers}"
    return f"""\
name: default
data-dir: {folder / "etcd"}
listen-client-urls: {clients_url}
advertise-client-urls: {clients_url}
listen-peer-urls: {peers_url}
initial-advertise-peer-urls: {peers_url}
initial-cluster: default={peers_url}
"""


def _unpacked() -> Path:
    """Its programs, which lie packed in the wheel; unpacking takes seconds, so that it is done once for a user."""
    import milvus

    folder = Path(tempfile.gettempdir()) / f"nearmesh-milvus-{milvus.__version__}-{os.getuid()}"
    if not folder.exists():
        draft = Path(tempfile.mkdtemp(prefix="nearmesh-milvus-"))
        milvus._initialize_data_files(str(draft))
        try:
            draft.rename(folder)
        except OSError:
            # Another run was faster.
            shutil.rmtree(draft)
    return folder / "bin"


@contextmanager
def milvus_server(*, silent_s: int = SILENT_S) -> Iterator[MilvusServer]:
    """A running server, gone with everything in it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="nearmesh-milvus-data-"))
    try:
        server = MilvusServer(folder, silent_s=silent_s)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
