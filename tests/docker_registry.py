"""Debian's `docker-registry`, a real registry, as a process on loopback with its storage in a folder."""

from __future__ import annotations

import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nearmesh.devmesh.children import Child
from nearmesh.devmesh.ports import free_ports

START_WITHIN_S = 20.0
# 'required': tests fail where the programs are missing, instead of being skipped.
REQUIRED = os.environ.get("NEARMESH_TEST_REGISTRY") == "required"

CONFIG = """
version: 0.1
log: {{ level: warn }}
storage:
  filesystem: {{ rootdirectory: {storage} }}
  maintenance: {{ uploadpurging: {{ enabled: false }} }}
http: {{ addr: "127.0.0.1:{port}", secret: none }}
"""


def program(name: str) -> str:
    """Where a program is that Debian has; the test is skipped, or fails where it is required, on a machine without."""
    found = shutil.which(name)
    if found is None:
        said = f"no {name}: Debian: apt-get install {name}; `make setup registry` does it"
        if REQUIRED:
            pytest.fail(said)
        pytest.skip(said)
    return found


@asynccontextmanager
async def docker_registry(folder: Path) -> AsyncIterator[str]:
    """Its host:port."""
    serve = program("docker-registry")
    (port,) = free_ports(1)
    config = folder / "config.yml"
    config.write_text(CONFIG.format(storage=folder / "storage", port=port))
    child = Child("docker-registry", [serve, "serve", str(config)], folder / "registry.log")
    await child.start()
    try:
        _answers(f"http://127.0.0.1:{port}/v2/", child)
        yield f"127.0.0.1:{port}"
    finally:
        await child.stop()


def _answers(url: str, child: Child) -> None:
    end = time.monotonic() + START_WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1.0):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end:
                raise AssertionError(f"no registry:\n{child.last_words(20)}") from None
            time.sleep(0.05)
