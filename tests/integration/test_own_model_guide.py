"""docs/models.md, run as it stands: its files are written, its commands are run, up to the answer of a real mesh."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from nearmesh.package import Package
from nearmesh.packaging.build import build
from tests.integration.mesh_processes import ControlPlane, control_plane, node

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TEXT = PAGE.read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"\d\.\d+(e-\d+)?")
# The first line of a block that is a file.
FILE_NAME = re.compile(r"# (\S+\.(?:py|toml))\n")


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(TEXT) if kind == language]


def write_files(folder: Path) -> None:
    """Every file of the page at its place."""
    for text in (*blocks("python"), *blocks("toml")):
        name = FILE_NAME.match(text)
        assert name, f"a block does not begin with its file's name: {text[:60]!r}"
        path = folder / name[1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def command_lines() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


async def run(line: str, folder: Path, **more: str) -> str:
    """What a command line of the page prints, with this environment's programs. Fails with its words."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | more
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        line,
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, f"{line}\n{output.decode()}"
    return output.decode()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything before publishing was done."""
    folder = tmp_path_factory.mktemp("guide")
    write_files(folder)
    for line in command_lines():
        if line.startswith("python "):
            asyncio.run(run(line, folder))
    return folder


def test_the_folder_is_a_package(made: Path) -> None:
    artifact = build(made / "comfort", made / "cache")
    assert (artifact.manifest.model, artifact.manifest.version) == ("comfort", "1")
    titles = {file.title for file in artifact.manifest.files}
    assert titles == {"model.toml", "fp32.onnx", "warmup.npz", "labels.txt"}
    assert build(made / "comfort", made / "cache").digest == artifact.digest


async def test_a_mesh_publishes_deploys_and_answers(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "guide"
    shutil.copytree(made, folder)
    async with control_plane(tmp_path / "mesh") as plane, node(plane, tmp_path / "node", "n1"):
        place = where(plane, tmp_path)
        said = {line: await run(line, folder, **place) for line in command_lines() if not line.startswith("python ")}
    (answer,) = [output for line, output in said.items() if " infer " in line]
    (shown,) = blocks("text")
    # The last digits are the machine's.
    assert FIGURE.sub("0", answer).startswith(FIGURE.sub("0", shown))
    assert "comfort@1 is wanted at every site; 1 of 1" in said["nearmesh model rollback comfort"]


def where(plane: ControlPlane, folder: Path) -> dict[str, str]:
    (folder / "ca.pem").write_bytes(plane.authority.ca_pem)
    return {
        "NEARMESH_CONTROL_PLANE": plane.public,
        "NEARMESH_CA": str(folder / "ca.pem"),
        "NEARMESH_TOKEN": plane.token("operator"),
    }


def test_every_key_of_a_package_is_explained() -> None:
    for name in keys(Package):
        assert re.search(rf"\b{name}\b", TEXT), f"docs/models.md does not mention the key {name!r}"


def keys(kind: Any) -> set[str]:
    """The names of a configuration's keys, those of its tables included."""
    if not dataclasses.is_dataclass(kind):
        return set().union(*(keys(part) for part in get_args(kind))) if get_origin(kind) else set()
    hints = get_type_hints(kind)
    return {field.name for field in dataclasses.fields(kind)}.union(*(keys(hint) for hint in hints.values()))
