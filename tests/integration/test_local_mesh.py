"""`nearmesh dev`: what a newcomer runs first, and that nothing of it is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nearmesh.devmesh.children import script
from nearmesh.devmesh.plan import MODELS, REGIONS

pytestmark = pytest.mark.timeout(180)

UP_WITHIN_S = 60.0
# So many processes of a mesh are there before all of it is up.
SOME_PROCESSES = 5


class Running:
    """`nearmesh dev up` in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        command = [script("nearmesh"), "dev", "up", "--no-tour", "--folder", str(folder), *options]
        self.output = (folder.parent / "up.log").open("w+")
        self.process = subprocess.Popen(command, stdout=self.output, stderr=subprocess.STDOUT)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "mesh.json").read_text())
        return found

    def pids(self) -> dict[str, int]:
        """Every process of the mesh by name."""
        state = self.state()
        found = {"control-plane": state["control_plane"]["pid"], "wan": state["wan"]["pid"]}
        found |= {name: node["pid"] for name, node in state["nodes"].items()}
        return found | {f"gateway-{region}": gateway["pid"] for region, gateway in state["gateways"].items()}

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self.output.close()


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Running]:
    """A mesh of which some processes are there."""
    mesh = Running(tmp_path / "dev")
    try:
        wait(lambda: len(processes_of(mesh.folder)) > SOME_PROCESSES or mesh.process.poll() is not None, UP_WITHIN_S)
        assert mesh.process.poll() is None, mesh.output.seek(0) or mesh.output.read()
        yield mesh
    finally:
        mesh.close()


@pytest.fixture
def running(starting: Running) -> Running:
    """A mesh that is up."""
    wait(lambda: (starting.folder / "mesh.json").exists() or starting.process.poll() is not None, UP_WITHIN_S)
    assert starting.process.poll() is None, starting.output.seek(0) or starting.output.read()
    return starting


def test_up_once_asks_everything_and_leaves_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    folder = tmp_path / "dev"
    done = dev("up", "--once", "--json", folder=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 60
    rows = json.loads(done.stdout)
    assert len(rows) == len(REGIONS) * 3 * len(MODELS)
    assert all(row["correct"] and row["why"] and row["usd_per_1000"] > 0 for row in rows)
    assert processes_of(folder) == []
    assert not (folder / "mesh.json").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("years of work")
    done = dev("up", "--once", folder=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "holds other things than a local mesh (thesis.txt)" in done.stderr
    assert mine.read_text() == "years of work"


def test_ctrl_c_stops_a_mesh_that_is_starting(starting: Running) -> None:
    starting.process.send_signal(signal.SIGINT)
    assert starting.process.wait(60) == 0
    assert processes_of(starting.folder) == []


def test_a_killed_supervisor_leaves_no_orphan(starting: Running) -> None:
    starting.process.kill()
    starting.process.wait(10)
    wait(lambda: processes_of(starting.folder) == [], 10)


def test_a_mesh_stays_alone_and_whole_until_it_is_told_to_stop(running: Running) -> None:
    done = dev("up", "--once", folder=running.folder)
    assert done.returncode == 1
    assert f"is running already (pid {running.process.pid})" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    # The first one does not mind.
    assert all(psutil.pid_exists(pid) for pid in running.pids().values())

    first = running.pids()["node-us-east1"]
    assert dev("kill", "node-us-east1", folder=running.folder).returncode == 0
    wait(lambda: running.pids()["node-us-east1"] not in (0, first), 30)

    assert dev("stop", "control-plane", "--kill", folder=running.folder).returncode == 0
    wait(lambda: running.pids()["control-plane"] == 0, 10)
    status = json.loads(dev("status", "--json", folder=running.folder).stdout)
    assert [p["name"] for p in status["processes"] if not p["up"]] == ["control-plane"]
    assert dev("start", "control-plane", folder=running.folder).returncode == 0
    wait(lambda: running.pids()["control-plane"] != 0, 30)

    done = dev("kill", "node-atlantis", folder=running.folder)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert dev("down", folder=running.folder).returncode == 0
    assert running.process.wait(60) == 0
    assert dev("status", folder=running.folder).returncode == 1


def dev(*arguments: str, folder: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [script("nearmesh"), "dev", *arguments, "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def processes_of(folder: Path) -> list[int]:
    """Processes that have the folder in their command line, the mesh's own supervisor and its clients too."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found.append(process.pid)
    return found


def wait(holds: Callable[[], bool], within_s: float) -> None:
    """Until other processes have brought something about."""

    async def look() -> None:
        async with asyncio.timeout(within_s):
            while True:
                if holds():
                    return
                await asyncio.sleep(0.05)

    asyncio.run(look())
