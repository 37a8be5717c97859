"""Waiting for a change: nobody misses one, nobody waits for what has happened."""

from __future__ import annotations

import asyncio

from nearmesh_controlplane.generation import Generation


async def settled() -> None:
    """Until every task that can go on has gone on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_has_happened_is_not_waited_for() -> None:
    changes = Generation()
    assert await changes.above(0) == 1
    changes.bump()
    assert await changes.above(1) == 2


async def test_everyone_who_waits_is_woken_by_one_change() -> None:
    changes = Generation()
    waiting = [asyncio.ensure_future(changes.above(1)) for _ in range(5)]
    await settled()
    assert not any(task.done() for task in waiting)
    changes.bump()
    assert await asyncio.gather(*waiting) == [2] * 5


async def test_several_changes_may_be_one_wake_up_and_none_is_lost() -> None:
    changes, heard = Generation(), []

    async def follow() -> None:
        seen = 1
        while seen < 10:
            seen = await changes.above(seen)
            heard.append(seen)

    following = asyncio.ensure_future(follow())
    await settled()
    for number in range(9):
        changes.bump()
        if number % 3 == 0:
            await settled()
    await asyncio.wait_for(following, 5)
    assert heard == sorted(set(heard)) and heard[-1] == 10


async def test_a_waiter_for_the_future_sleeps_on() -> None:
    changes = Generation()
    waiting = asyncio.ensure_future(changes.above(2))
    await settled()
    changes.bump()
    await settled()
    assert not waiting.done()
    changes.bump()
    assert await waiting == 3


async def test_who_stops_waiting_leaves_nothing() -> None:
    changes = Generation()
    waiting = asyncio.ensure_future(changes.above(1))
    await settled()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert changes._waiters == set()
    assert changes.bump() == 2


async def test_what_drifts_is_one_change_at_the_next_tick() -> None:
    changes = Generation()
    waiting = asyncio.ensure_future(changes.above(1))
    changes.drift()
    changes.drift()
    await settled()
    assert not waiting.done()
    changes.tick()
    assert await waiting == 2
    changes.tick()
    assert changes.value == 2


async def test_a_wait_may_be_bounded() -> None:
    changes = Generation()
    seen = changes.value
    assert await changes.above(seen, 0.0) == seen
    changes.bump()
    assert await changes.above(seen, 0.0) == seen + 1
