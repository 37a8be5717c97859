"""Blocking work of pulls, in threads, and pieces of work side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

# How the names of those threads begin that read from other machines, which may hang in a call for a while.
READER_THREADS = "pull-read"


async def in_thread(pool: Executor, work: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, partial(work, *arguments))


async def to_its_end(pool: Executor, work: Callable[..., Any], *arguments: Any) -> Any:
    """As `in_thread`, for what moves files: whoever comes next is not to meet it half done, cancelled or not."""
    future = asyncio.get_running_loop().run_in_executor(pool, partial(work, *arguments))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            # Whoever is impatient has been heard already.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({future})
        raise


async def together(*work: Awaitable[None]) -> None:
    """All of it, or the first error, once the others have ended too."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
