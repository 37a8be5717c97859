"""A loop in a thread of its own: calls of several threads, and its end while one waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from nearmesh.client.own_loop import OwnLoop
from nearmesh.errors import ConfigError, Unreachable


async def nothing() -> None: ...


def opened() -> OwnLoop:
    loop = OwnLoop("this is", "open it")
    loop.open(nothing())
    return loop


def test_a_call_that_another_thread_waits_for_ends_with_the_loop() -> None:
    loop, under_way, said = opened(), threading.Event(), []

    async def forever() -> None:
        under_way.set()
        await asyncio.Event().wait()

    def wait() -> None:
        with pytest.raises(Unreachable):
            loop.run(forever())
        said.append("ended")

    other = threading.Thread(target=wait)
    other.start()
    assert under_way.wait(10)
    loop.close(nothing)
    other.join(10)
    assert said == ["ended"]


def test_a_stream_comes_one_after_the_other_and_nothing_runs_before_or_after() -> None:
    async def three() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    with pytest.raises(ConfigError, match="this is not open: open it"):
        OwnLoop("this is", "open it").run(nothing())
    loop = opened()
    assert list(loop.each(three())) == [0, 1, 2]
    loop.close(nothing)
    with pytest.raises(ConfigError):
        loop.run(nothing())


def test_what_cannot_begin_leaves_nothing() -> None:
    async def fails() -> None:
        raise Unreachable("nobody there")

    before = threading.active_count()
    with pytest.raises(Unreachable, match="nobody there"):
        OwnLoop("this is", "open it").open(fails())
    assert threading.active_count() == before
