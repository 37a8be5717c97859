"""A node's apps begin as forks of one process that has imported what they need; where there is none, by themselves."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nearmesh_agent.training import nursery_call
from nearmesh_agent.training.supernode import environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="has the kernel end processes")

WITHIN_S = 30.0
# As it is, but for the imports that take long, and with an app that says which process it is.
NURSERY = """
import os, sys, time
from nearmesh_agent.training import nursery
nursery._IF_THERE = ()
def main(*, own_apps):
    print("app", own_apps, os.getpid(), os.getppid(), *sys.argv, flush=True)
    time.sleep(600 if "--stay" in sys.argv else 0)
    sys.exit("it has to end")
imported = nursery._import
def _import():
    imported()
    sys.modules[nursery.APP].main = main
nursery._import = _import
nursery.main(["flower-nursery", "--own-apps"])
"""


@asynccontextmanager
async def nursery(folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", NURSERY),
        cwd=folder,
        env=environment(folder, own_apps=True),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            while not (folder / nursery_call.SOCKET).exists():  # noqa: ASYNC110 - other processes set no events
                await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def begin(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a SuperExec does."""
    path = environment(folder, own_apps=True)
    program = shutil.which("flwr-clientapp", path=path["PATH"])
    assert program
    command = [program, *arguments]
    return subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True, check=False, timeout=WITHIN_S)


async def test_apps_are_forked_with_their_arguments_and_end_with_the_nursery(tmp_path: Path) -> None:
    async with nursery(tmp_path) as process:
        assert process.stdout is not None

        async def app(*arguments: str) -> list[str]:
            assert process.stdout is not None
            done = await asyncio.to_thread(begin, tmp_path, *arguments)
            assert (done.returncode, done.stdout) == (0, "")
            return (await asyncio.wait_for(process.stdout.readline(), WITHIN_S)).decode().split()

        word, own_apps, pid, parent, *argv = await app("--token", "t", "--stay")
        assert (word, own_apps, int(parent)) == ("app", "True", process.pid)
        assert argv == ["flwr-clientapp", "--token", "t", "--stay"]
        # One that ends, however it does, leaves the others and the nursery as they are.
        for _ in range(2):
            assert (await app())[4:] == ["flwr-clientapp"]
        os.kill(int(pid), 0)
        process.kill()
        await process.wait()
        # The kernel has ended it; who adopts it takes a moment to notice.
        async with asyncio.timeout(5.0):
            while _runs(int(pid)):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)


async def test_without_a_nursery_an_app_begins_by_itself(tmp_path: Path) -> None:
    done = await asyncio.to_thread(begin, tmp_path, "--help")
    assert done.returncode == 0 and "Run a Flower ClientApp" in done.stdout


async def test_a_nursery_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery_call, "WAIT_S", 0.1)
    monkeypatch.chdir(tmp_path)
    async with nursery(tmp_path) as process:
        while not (tmp_path / nursery_call.SOCKET).exists():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        assert await asyncio.to_thread(nursery_call.main, ["--help"]) == 1


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
