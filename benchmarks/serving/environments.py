"""A virtual environment for each peer under `build/bench/venvs`, so that each has the versions that it asks for.

Other model servers have the ONNX Runtime that the project pins: what is compared is the serving, not the engine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import NotInstalled

BUILD = CHECKOUT / "build" / "bench"
PYTHON = "python3.11"
# Written last: an environment without it is half made.
STAMP = "installed.txt"
# The slowest one downloads some 300 MB.
INSTALL_WITHIN_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a peer is installed from."""

    name: str
    # Exact versions; the first one is the peer itself.
    packages: tuple[str, ...]
    # What it shares with the project, in the project's versions.
    shared: tuple[str, ...] = ("onnxruntime",)
    # PyTriton starts a Python inside its server that loads the system's libpython, and mixes two standard libraries
    # when the environment's own interpreter is another build.
    system_python: bool = False

    @property
    def folder(self) -> Path:
        return BUILD / "venvs" / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


ENVIRONMENTS = {
    found.name: found
    for found in (
        Environment(name="pytriton", packages=("nvidia-pytriton==0.7.0",), system_python=True),
        Environment(name="kserve", packages=("kserve==0.21.0",)),
        # With uvloop 0.22 or later MLServer finds no event loop in its threads.
        Environment(name="mlserver", packages=("mlserver==1.7.1", "uvloop==0.21.0")),
        Environment(name="litserve", packages=("litserve==0.2.19",)),
    )
}


def make(environment: Environment) -> None:
    """Installs the environment unless it is there already. Raises NotInstalled."""
    wanted = "\n".join((*environment.packages, *map(pinned, environment.shared))) + "\n"
    stamp = environment.folder / STAMP
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return
    shutil.rmtree(environment.folder, ignore_errors=True)
    _run([interpreter(environment), "-m", "venv", str(environment.folder)], environment.name)
    pip = [str(environment.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    _run([*pip, *wanted.split()], environment.name)
    stamp.write_text(wanted, "utf-8")


def pinned(package: str, requirements: Path = CHECKOUT / "requirements.txt") -> str:
    """The line of requirements.txt for that package. Raises NotInstalled."""
    for line in requirements.read_text("utf-8").splitlines():
        if line.partition("==")[0] == package:
            return line
    raise NotInstalled(f"{requirements.name} does not pin {package}; run `make pins`")


def interpreter(environment: Environment) -> str:
    """The Python that the environment is made with. Raises NotInstalled."""
    if not environment.system_python:
        # The one below our own environment: an environment made from an environment would depend on it.
        return str(Path(sys.base_prefix) / "bin" / PYTHON)
    found = shutil.which(PYTHON, path=os.confstr("CS_PATH"))
    if found is None:
        raise NotInstalled(f"{environment.name} needs the system's own {PYTHON}; none in {os.confstr('CS_PATH')}")
    return found


def versions(environment: Environment) -> dict[str, str]:
    """The installed versions of what matters to a peer's figures. Raises NotInstalled."""
    names = [*(package.partition("==")[0] for package in environment.packages), "onnxruntime", "grpcio", "numpy"]
    pip = [str(environment.python), "-m", "pip", "list", "--disable-pip-version-check", "--format=freeze"]
    listed = dict(line.split("==", 1) for line in _run(pip, environment.name).splitlines() if "==" in line)
    return {name: listed[name] for name in names if name in listed}


def _run(command: Sequence[str], name: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_WITHIN_S, check=True)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{name}: `{' '.join(command[1:4])}` took more than {INSTALL_WITHIN_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:]
        raise NotInstalled(f"{name}: `{' '.join(command[1:4])}` failed: {' '.join(last)}") from None
    except OSError as error:
        raise NotInstalled(f"{name}: {error}") from None
    return done.stdout
