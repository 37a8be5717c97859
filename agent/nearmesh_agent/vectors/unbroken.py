"""Work of several steps, on the disk and in memory, is done as a whole, though its caller goes away in the middle.

A call whose caller leaves, or whose time is up, is cancelled; what its threads do goes on. The disk would say one thing
then, and memory another, until a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# The loop itself does not hold them.
_under_way: set[asyncio.Task[Any]] = set()


def unbroken(work: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Of a method: once begun it goes on to its end."""

    @wraps(work)
    async def whole(*args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.create_task(work(*args, **kwargs))
        _under_way.add(task)
        task.add_done_callback(_under_way.discard)
        return await asyncio.shield(task)

    return whole
