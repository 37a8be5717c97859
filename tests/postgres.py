"""A throw-away PostgreSQL server on loopback, with everything that makes a commit durable left on."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from nearmesh.devmesh.ports import free_ports
from nearmesh.process import leashed

START_WITHIN_S = 30.0
# PostgreSQL refuses to run as root; one of these stands in.
UNPRIVILEGED = ("postgres", "nobody")
# Where Debian keeps its versions' programs, which are not on the path.
DEBIAN = Path("/usr/lib/postgresql")


def program(name: str) -> str | None:
    """Where `postgres` or `initdb` is; None on a machine without."""
    found = shutil.which(name)
    if found:
        return found
    versions = sorted(DEBIAN.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    return str(versions[-1]) if versions else None


def why_not() -> str:
    """Why there can be no server here; empty when there can."""
    missing = [name for name in ("initdb", "postgres") if program(name) is None]
    return f"no {' and no '.join(missing)}: install PostgreSQL (Debian: apt-get install postgresql)" if missing else ""


class Postgres:
    """One server in a folder of its own, on a port that stays its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._user = next((name for name in UNPRIVILEGED if _known(name)), None) if os.getuid() == 0 else None
        (self.port,) = free_ports(1)
        self._names = (f"mesh_{number}" for number in itertools.count())
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            shutil.chown(folder, self._user)
        self._run(
            str(program("initdb")), "-D", str(folder / "data"), "-U", "mesh", "-A", "trust", "--no-instructions", "-N"
        )

    def url(self, database: str) -> str:
        return f"postgresql://mesh@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = next(self._names)
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        return self.url(name)

    def start(self) -> None:
        """Returns when it takes connections. To be called in the main thread: the server ends with its caller's."""
        command = [
            str(program("postgres")),
            *("-D", str(self._folder / "data"), "-p", str(self.port), "-k", str(self._folder)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=50", "-c", "shared_buffers=16MB"),
            # After a crash all files are synced before the log is read: one by one that takes a while.
            *("-c", "recovery_init_sync_method=syncfs"),
        ]
        with (self._folder / "log").open("ab") as output:
            self._process = subprocess.Popen(self._leashed(command), cwd=self._folder, stdout=output, stderr=output)
        end = time.monotonic() + START_WITHIN_S
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"PostgreSQL did not start:\n{self.last_words()}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """At once, without a checkpoint, as a crash does: what was committed is found in the log at the next start."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_WITHIN_S)

    def last_words(self) -> str:
        return (self._folder / "log").read_text("utf-8", "replace")[-2000:]

    def _run(self, *command: str) -> None:
        done = subprocess.run(self._leashed(list(command)), cwd=self._folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def _leashed(self, command: list[str]) -> list[str]:
        """The command as an unprivileged user, ended by the kernel when this process is gone."""
        if not self._user:
            return leashed(command)
        # Our own leash is Python, which that user may not be allowed to read.
        group = str(pwd.getpwnam(self._user).pw_gid)
        switch = ["setpriv", "--reuid", self._user, "--regid", group, "--clear-groups", "--pdeathsig", "KILL"]
        return [*switch, "--", *command]


def _known(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server, gone with everything in it afterwards."""
    # Not below pytest's folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="nearmesh-postgres-"))
    try:
        server = Postgres(folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
