"""The three wheels: what is in them, and whether the agent's is all that another machine needs to join.

Needs pip and the package index that it is set to. The other machine is a virtual environment of its own, made as the
agent's image is, from what the image is built from; its processes see neither this checkout nor this environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import nearmesh
from nearmesh.devmesh.children import Child, script
from nearmesh.tokens import JoinTicket
from nearmesh.v1 import node_pb2
from tests.integration.adding_model import adding
from tests.integration.mesh_processes import MESH, ControlPlane, control_plane, until

# Building and installing, when pip has nothing in its cache.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
# Distribution: its folder in the checkout, and its package in that folder.
PACKAGES = {
    "nearmesh": (".", "nearmesh"),
    "nearmesh_agent": ("agent", "nearmesh_agent"),
    "nearmesh_controlplane": ("controlplane", "nearmesh_controlplane"),
}
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60}
SUFFIXES = (".py", ".pyi", ".typed", ".mako", ".json")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]

# Run in the clean environment: the SDK and every command, with nothing that an extra brings.
PROBE = """
import importlib, pathlib, sys
import nearmesh.client, nearmesh.cli.main
for name in nearmesh.cli.main.COMMANDS:
    importlib.import_module(f"nearmesh.cli.{name}")
print(pathlib.Path(nearmesh.__file__).parent, nearmesh.__version__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What a command printed. Fails with its own last words."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=clean_environment(), check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lead Python to this checkout."""
    found = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # An image starts quicker with compiled files, a test does not live long enough.
    return found | {"PIP_NO_COMPILE": "1"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three wheels. Built from a copy: setuptools leaves a folder with old files beside the code."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for folder, package in PACKAGES.values():
        shutil.copytree(ROOT / folder / package, source / folder / package, ignore=ignored)
        shutil.copy(ROOT / folder / "pyproject.toml", source / folder)
    shutil.copy(ROOT / "README.md", source)
    folders = [f"./{folder}" for folder, _ in PACKAGES.values()]
    # By this environment's setuptools, which grpcio-tools brings, and not by three that pip would install for it.
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, *folders, cwd=source)
    return target


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bin folder of another machine, installed by the same script as the agent's image."""
    context, folder = tmp_path_factory.mktemp("context"), tmp_path_factory.mktemp("machine") / "nearmesh"
    for path in (ROOT / ".dockerignore").read_text().splitlines():
        if path.startswith("!"):
            source, target = ROOT / path[1:], context / path[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            copied = shutil.copytree if source.is_dir() else shutil.copy
            copied(source, target)
    run("sh", "deploy/images/install.sh", folder, "cpu", cwd=context)
    yield folder / "bin"
    # A few hundred megabytes that pytest would keep for three runs.
    shutil.rmtree(folder)


@pytest.mark.parametrize("distribution", PACKAGES)
def test_a_wheel_holds_its_package_and_nothing_else(wheels: Path, distribution: str) -> None:
    folder, package = PACKAGES[distribution]
    with zipfile.ZipFile(next(wheels.glob(f"{distribution}-*.whl"))) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(ROOT / folder).as_posix()
        for path in (ROOT / folder / package).rglob("*")
        if path.suffix in SUFFIXES or path.name == "py.typed"
    }
    assert found == files


def test_the_three_are_of_one_version(wheels: Path) -> None:
    assert {path.name.split("-")[1] for path in wheels.glob("*.whl")} == {nearmesh.__version__}
    assert len(list(wheels.glob("*.whl"))) == len(PACKAGES)


def test_sdk_and_commands_are_there_and_come_from_the_wheel(machine: Path, tmp_path: Path) -> None:
    folder, version = run(machine / "python", "-c", PROBE, cwd=tmp_path).split()
    assert Path(folder).is_relative_to(machine.parent) and version == nearmesh.__version__
    assert version in run(machine / "nearmesh", "--version", cwd=tmp_path)
    assert "usage" in run(machine / "nearmesh", "infer", "--help", cwd=tmp_path).lower()


def test_what_the_local_mesh_needs_is_said(machine: Path, tmp_path: Path) -> None:
    done = subprocess.run([machine / "nearmesh", "dev", "up"], cwd=tmp_path, **CAPTURED)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "checkout" in done.stderr


async def test_one_command_joins_another_machine(machine: Path, tmp_path: Path) -> None:
    async with control_plane(tmp_path / "mesh") as plane, plane.operator() as operator:
        async with other_machine(machine, tmp_path, plane, "--token", join_token(plane, tmp_path)) as node:
            artifact = adding(tmp_path / "adding", "adding", "1", 3.0)
            await operator.publish(artifact)
            await operator.deploy("adding", "1")

            async def ready() -> bool:
                replicas = (await operator.model("adding")).replicas
                return any(r.node == "far" and r.status.state == node_pb2.REPLICA_STATE_READY for r in replicas)

            await until(ready, within_s=30, what=f"the model is ready:\n{node.last_words(30)}")
            (found,) = await operator.nodes()
            assert (found.id, found.site, found.usd_per_hour) == ("far", "attic", 0.25)
            assert found.agent_version == nearmesh.__version__
            assert found.public_address.startswith("127.0.0.1:")
        async with other_machine(machine, tmp_path, plane):
            """From the second start on, the folder is proof enough."""


def test_a_control_plane_that_is_not_there_is_named(machine: Path, tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path / "mesh")
    ticket = JoinTicket(
        id="1",
        mesh=MESH,
        kind="node",
        name="far",
        site="attic",
        region="europe-west1",
        control_plane=plane.public,
        control_plane_mesh=plane.mesh,
        ca_pem=plane.authority.ca_pem,
    )
    token = plane.authority.issuer.join(ticket, now_s=time.time(), lifetime_s=60)
    done = subprocess.run([machine / "nearmesh-agent", "--data", tmp_path / "far", "--token", token], **CAPTURED)
    assert done.returncode == 1
    assert f"no control plane of this mesh answers at {plane.public}" in done.stderr
    assert "advertise_host" in done.stderr and "Traceback" not in done.stderr


def join_token(plane: ControlPlane, folder: Path) -> str:
    """What an operator does: `nearmesh node token`."""
    ca, operator = folder / "ca.pem", folder / "operator.jwt"
    ca.write_bytes(plane.authority.ca_pem)
    operator.write_text(plane.token("operator"))
    command = [script("nearmesh"), "--control-plane", plane.public, "--ca", ca, "--token", operator]
    return run(*command, "node", "token", "far", "--site", "attic", "--region", "europe-west1", cwd=folder).strip()


@asynccontextmanager
async def other_machine(machine: Path, folder: Path, plane: ControlPlane, *token: str) -> AsyncIterator[Child]:
    """The one command on the other machine, once the control plane sees the node live."""
    command = [str(machine / "nearmesh-agent"), "--data", str(folder / "far"), "--usd-per-hour", "0.25", *token]
    # Another process may hold Triton's ports here, and nobody else shall reach this one.
    for listener in ("public", "mesh", "metrics"):
        command += [f"--listen-{listener}", "127.0.0.1:0"]
    child = Child("far", command, folder / "far.log", clean_environment())
    await child.start()
    try:
        async with plane.operator() as operator:

            async def live() -> bool:
                assert child.pid, f"the agent ended:\n{child.last_words(30)}"
                return any(node.live for node in await operator.nodes())

            await until(live, within_s=30, what=f"the node is live:\n{child.last_words(30)}")
        yield child
    finally:
        await child.stop()
