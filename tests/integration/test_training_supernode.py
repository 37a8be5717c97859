"""A SuperNode as a process beside the agent, in the place of Flower's program one that says what it was given."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nearmesh_agent.training.config import TrainingConfig
from nearmesh_agent.training.supernode import LOG, SuperNode
from nearmesh_agent.training.throttle import Throttle

from nearmesh.tls import Credentials, key_to_pem, new_key
from tests.signals import send

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

# Beginning a few interpreters on a busy machine.
WITHIN_S = 20.0
PROGRAM = """
import json, os, pathlib, sys, time
print("of the data", file=sys.stderr, flush=True)
pathlib.Path("said.json.draft").write_text(json.dumps({"pid": os.getpid(), "argv": sys.argv, "env": dict(os.environ)}))
os.replace("said.json.draft", "said.json")
time.sleep(600)
"""


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "training"
        program = folder / "program.py"
        program.write_text(PROGRAM)
        credentials = Credentials(key_to_pem(new_key()), b"certificate", b"authority")
        self.node = SuperNode(
            TrainingConfig(allowed=True),
            self.folder,
            lambda: credentials,
            Throttle((), lambda: 0.0, cpu_share=0.5),
            program=[sys.executable, str(program), "flower-supernode"],
        )

    async def said(self) -> dict[str, Any]:
        """What the program was given, once it has begun; then it is forgotten."""
        path = self.folder / "said.json"
        await until(path.exists)
        found: dict[str, Any] = json.loads(path.read_text())
        path.unlink()
        return found

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.node.keep("control.example:7480"))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
        assert task.cancelled()


async def until(what: Callable[[], object], within_s: float = WITHIN_S) -> None:
    async with asyncio.timeout(within_s):
        while not what():  # noqa: ASYNC110 - other processes set no events
            await asyncio.sleep(0.02)


async def test_it_is_started_told_where_to_go_started_again_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEARMESH_JOIN_TOKEN", "secret")
    site = Site(tmp_path)
    async with site.kept():
        first = await site.said()
        assert first["argv"][1:4] == ["flower-supernode", "--superlink", "control.example:7480"]
        assert "secret" not in first["env"].values()
        assert first["env"]["FLWR_HOME"] == str(site.folder / "flower")
        assert (site.node.running, site.node.detail) == (True, "")
        send(first["pid"], signal.SIGKILL)
        await until(lambda: site.node.detail)
        # What it printed stays here.
        assert site.node.detail == "its SuperNode ended with code 137 and is started again"
        assert "of the data" in (site.folder / LOG).read_text()
        second = await site.said()
        assert second["pid"] != first["pid"]
        assert (site.node.running, site.node.detail) == (True, "")
    assert not site.node.running
    with pytest.raises(ProcessLookupError):
        os.kill(second["pid"], 0)


async def test_what_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearmesh_agent.training.supernode.FIRST_WAIT_S", 0.01)
    site = Site(tmp_path)
    site.folder.touch()
    async with site.kept():
        await until(lambda: site.node.detail)
        assert site.node.detail == "its SuperNode cannot be started: File exists"
        site.folder.unlink()
        await site.said()
        assert site.node.running
