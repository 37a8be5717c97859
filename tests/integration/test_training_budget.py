"""Training processes within a budget: what they use, and that none is left behind standing still."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from nearmesh_agent.serving.occupancy import Occupancy
from nearmesh_agent.training.throttle import EVERY_S, Throttle

from tests.signals import send
from tests.training_family import cpu_s, named, state, tree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

PIPE = asyncio.subprocess.PIPE
# Beginning a few interpreters on a busy machine.
WITHIN_S = 20.0


async def until(what: Callable[[], object], within_s: float = WITHIN_S) -> None:
    async with asyncio.timeout(within_s):
        while not what():  # noqa: ASYNC110 - other processes set no events
            await asyncio.sleep(0.02)


@asynccontextmanager
async def warded(throttle: Throttle, folder: Path, apps: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A warden under a throttle, with all apps at work."""
    process = await asyncio.create_subprocess_exec(
        *throttle.command(tree(apps), folder / "yielded"), stdin=PIPE, stdout=PIPE
    )
    running = asyncio.create_task(throttle.run(process))
    try:
        await until(lambda: throttle.workers == apps)
        yield process
    finally:
        running.cancel()
        await asyncio.wait({running})
        assert not named(process.pid, "an-app")


def throttle(cpu_share: float, utilization: Callable[[], float] = lambda: 0.0) -> Throttle:
    return Throttle((), utilization, cpu_share=cpu_share)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole budget from the beginning; by itself it grows to it in five seconds."""
    monkeypatch.setattr("nearmesh_agent.training.budget.FIRST", 1.0)


async def test_apps_use_their_share_of_the_cores_and_stand_still_for_the_rest(tmp_path: Path, at_once: None) -> None:
    share, cores = 0.3, len(os.sched_getaffinity(0))
    held = throttle(share)
    async with warded(held, tmp_path, apps=cores) as process:
        apps = named(process.pid, "an-app")
        await until(lambda: held.share == share)
        began, used, yielded = time.monotonic(), sum(map(cpu_s, apps)), held.yielded_s
        await asyncio.sleep(2.5)
        took_s = time.monotonic() - began
        used, yielded = sum(map(cpu_s, apps)) - used, held.yielded_s - yielded
        allowed = share * cores * took_s
        assert used < 1.25 * allowed + 0.1
        # Others may take the cores from them; then there is less to stand still for.
        assert used > 0.7 * allowed or yielded < 0.5 * took_s
        assert all(os.sched_getscheduler(app) == os.SCHED_IDLE for app in apps)
        assert abs(float((tmp_path / "yielded").read_text()) - held.yielded_s) < 1.0


async def test_overloaded_serving_lets_them_run_for_moments_only(tmp_path: Path) -> None:
    held = throttle(0.5, utilization=lambda: 1.5)
    async with warded(held, tmp_path, apps=1) as process:
        (app,) = named(process.pid, "an-app")
        await until(lambda: state(app) == "T")
        await until(lambda: held.paused == "stands still: serving takes 150% of the node")
        began, used, yielded = time.monotonic(), cpu_s(app), held.yielded_s
        await asyncio.sleep(2.5)
        took_s = time.monotonic() - began
        assert cpu_s(app) - used < 0.2 * took_s
        assert held.yielded_s - yielded > 0.5 * took_s
        # Those that keep the connection to the SuperLink do not stand still.
        assert state(named(process.pid, "flower-superexec")[0]) == "S"


async def test_an_engine_call_stops_them_at_once_and_they_go_on_after_it(tmp_path: Path) -> None:
    occupancy = Occupancy()
    held = Throttle((), lambda: 0.0, cpu_share=1.0, occupancy=occupancy)
    async with warded(held, tmp_path, apps=1) as process:
        (app,) = named(process.pid, "an-app")
        # The budget grows to its full size first; from then on nothing else stops it.
        await until(lambda: held.share == 1.0)
        stopped_s = []
        for _ in range(10):
            await until(lambda: state(app) != "T")
            began = time.monotonic()
            occupancy.enter()
            while state(app) != "T":
                assert time.monotonic() < began + 5
                # The agent goes on: its second word mends what a word that was on its way has undone.
                await asyncio.sleep(0)
            stopped_s.append(time.monotonic() - began)
            occupancy.leave()
        # The agent says so four times a second in any case: the bell is for all that is quicker.
        assert sorted(stopped_s)[5] < EVERY_S / 5, stopped_s


async def test_when_the_agent_is_killed_nothing_is_left_standing_still(tmp_path: Path) -> None:
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.training_agent", str(tmp_path / "yielded"), stdout=PIPE
    )
    assert agent.stdout is not None
    try:
        warden = int(await asyncio.wait_for(agent.stdout.readline(), WITHIN_S))
        await until(lambda: [state(app) for app in named(warden, "an-app")] == ["T"])
        family = [*named(warden, "an-app"), *named(warden, "flower-superexec"), *named(warden, "flower-supernode")]
        assert len(family) >= 3
    finally:
        agent.kill()
        await agent.wait()
    await until(lambda: not any(state(pid) for pid in [warden, *family]), within_s=5)


async def test_when_the_warden_is_killed_the_agent_ends_the_rest(tmp_path: Path) -> None:
    held = throttle(0.5, utilization=lambda: 1.5)
    async with warded(held, tmp_path, apps=2) as process:
        apps = named(process.pid, "an-app")
        await until(lambda: all(state(app) == "T" for app in apps))
        send(process.pid, signal.SIGKILL)
        await until(lambda: not any(state(app) not in ("", "Z") for app in apps), within_s=5)
        await process.wait()


async def test_a_supernode_that_ends_is_told_by_its_exit_code_and_leaves_no_apps(tmp_path: Path) -> None:
    held = throttle(0.5)
    async with warded(held, tmp_path, apps=1) as process:
        (app,) = named(process.pid, "an-app")
        (supernode,) = named(process.pid, "flower-supernode")
        send(supernode, signal.SIGUSR1)
        assert await asyncio.wait_for(process.wait(), 5) == 128 + signal.SIGUSR1
        assert state(app) == ""


def test_a_warden_that_hears_no_more_is_waited_for_on_the_agents_own_loop() -> None:
    """uvloop closes a pipe that nobody reads, and raises what no other loop does for the next write."""

    async def deaf() -> int | None:
        process = await asyncio.create_subprocess_exec("sleep", "0.5", stdin=PIPE, stdout=PIPE, start_new_session=True)
        assert process.stdin is not None
        process.stdin.close()
        await Throttle((), lambda: 0.0, cpu_share=0.5).run(process)
        return process.returncode

    assert uvloop.run(deaf()) == 0
