"""The README's commands and examples, run as they stand against a local mesh: what a newcomer runs, from `dev up` and
its table until nothing of it is left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nearmesh.devmesh.children import script
from nearmesh.devmesh.plan import MODELS, REGIONS
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.package import read_labels
from tests.integration.test_local_mesh import UP_WITHIN_S, Running, dev, processes_of, wait

pytestmark = pytest.mark.timeout(420)

README = (CHECKOUT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
MESH_COMMANDS = [line for line in COMMANDS if line.startswith("nearmesh ")]
SET_UP = [line for line in COMMANDS if line.startswith("python ")]
# Rounds take as long as training does, beside which other tests run.
WITHIN_S, RUN_WITHIN_S = 60.0, 360.0
LABELS = read_labels(CHECKOUT / "models" / "file-type" / "labels.txt")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A mesh that is up and has shown its table."""
    folder = tmp_path_factory.mktemp("readme") / ".nearmesh"
    folder.mkdir()
    started = time.monotonic()
    mesh = Running(folder / "dev", "--vectors", "--json")
    try:
        mesh.up(mesh.rows, 2 * UP_WITHIN_S)
        assert time.monotonic() - started < UP_WITHIN_S
        yield mesh
    finally:
        mesh.close()


@pytest.fixture(scope="module")
def home(running: Running) -> Path:
    """A folder as the README has it: a mesh in .nearmesh/dev, and what the README's first commands make."""
    folder = running.folder.parents[1]
    (folder / "README.md").write_text(README)
    for line in SET_UP:
        done = shell(line, folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_everything_was_asked(running: Running) -> None:
    rows = running.rows()
    assert len(rows) == len(REGIONS) * 3 * len(MODELS)
    assert all(row["correct"] and row["why"] and row["usd_per_1000"] > 0 for row in rows), rows


@pytest.mark.parametrize("code", PYTHON, ids=["gateway", "xds", "sdk"])
def test_every_way_in_answers_what_this_file_is(home: Path, code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert LABELS[int(done.stdout.split()[0])] == "markdown"


@pytest.mark.parametrize("line", MESH_COMMANDS, ids=range(len(MESH_COMMANDS)))
def test_commands_work(home: Path, line: str) -> None:
    done = shell(line, home)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command as in a terminal in which the environment was activated."""
    environment = os.environ | {"PATH": f"{Path(script('nearmesh')).parent}:{os.environ['PATH']}"}
    command = ["bash", "-c", line]
    limit_s = RUN_WITHIN_S if line.startswith("nearmesh run start") else WITHIN_S
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_s)


def test_the_other_commands_are_the_makefiles() -> None:
    rest = [line for line in COMMANDS if line not in MESH_COMMANDS + SET_UP]
    assert rest == ["make up", "make test", ". .venv/bin/activate"]
    for target, expected in (("up", "nearmesh dev up"), ("up ONCE=1", "nearmesh dev up --once")):
        shown = subprocess.run(
            ["make", "--dry-run", "--no-print-directory", *target.split()],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout.rstrip().endswith(expected)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (CHECKOUT / target).exists(), target


def test_the_tour_is_what_the_command_prints() -> None:
    shown = re.search(r"<!-- tour -->\n```text\n(.*?)```\n<!-- /tour -->", README, re.DOTALL)
    assert shown
    for word in ("client region", "why that site", "36 of 36 rows right", "europe-west1", "gateway", "xds", "sdk"):
        assert word in shown.group(1)


def test_what_was_imported_is_found(home: Path) -> None:
    """After the commands above, which make the collection and fill it."""
    (line,) = (line for line in MESH_COMMANDS if line.startswith("nearmesh vectors retrieve"))
    hits = json.loads(shell(f"{line} --json", home).stdout)["hits"]
    assert len(hits) == 3 and any("frozen" in hit["text"] for hit in hits)


def test_the_run_is_what_the_command_prints(home: Path) -> None:
    """After the commands above, of which one was this run."""
    shown = re.search(r"<!-- run -->\n```text\n(.*?)```\n<!-- /run -->", README, re.DOTALL)
    assert shown
    ours = shell("nearmesh run show", home).stdout
    for line in ("Rounds: accuracy", "Sites, over all rounds", "Gate"):
        assert line in shown.group(1) and line in ours
    assert (home / "digits.svg").read_text().startswith("<?xml")


def test_a_mesh_stays_alone_and_whole_until_it_is_told_to_stop(running: Running) -> None:
    """The last one: afterwards there is no mesh any more."""
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
    assert processes_of(running.folder) == []
    assert not (running.folder / "mesh.json").exists()
