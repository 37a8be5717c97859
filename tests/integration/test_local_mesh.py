"""`nearmesh dev up`: that nothing of it is left behind, however early it ends. A mesh that is up is test_readme's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nearmesh.devmesh.children import script

pytestmark = pytest.mark.timeout(180)

UP_WITHIN_S = 60.0
# So many processes of a mesh are there before all of it is up.
SOME_PROCESSES = 5


class Running:
    """`nearmesh dev up` in a folder of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        command = [script("nearmesh"), "dev", "up", "--folder", str(folder), *options]
        self._shown, self._said = folder.parent / "up.out", folder.parent / "up.log"
        with self._shown.open("w") as shown, self._said.open("w") as said:
            self.process = subprocess.Popen(command, stdout=shown, stderr=said)

    def up(self, holds: Callable[[], Any], within_s: float) -> None:
        """Waits until it is so; the mesh has to stay meanwhile."""
        wait(lambda: holds() or self.process.poll() is not None, within_s)
        assert self.process.poll() is None, self._shown.read_text() + self._said.read_text()

    def rows(self) -> list[dict[str, Any]]:
        """Of the table, with `--json`, once all of it is there."""
        try:
            found: list[dict[str, Any]] = json.loads(self._shown.read_text())
        except ValueError:
            return []
        return found

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


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Running]:
    """A mesh of which some processes are there."""
    mesh = Running(tmp_path / "dev", "--no-tour")
    try:
        mesh.up(lambda: len(processes_of(mesh.folder)) > SOME_PROCESSES, UP_WITHIN_S)
        yield mesh
    finally:
        mesh.close()


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
