"""Changes of several steps, on the disk and in memory, are done as a whole, though their caller goes away in between.

gRPC cancels a call whose client left or whose time is up, but what its threads do goes on: the disk would say one thing
then, and memory another, until a restart.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Changes on their way; an event loop by itself would let go of those that nobody waits for any more.
_begun: set[asyncio.Task[Any]] = set()


def whole(change: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Once begun, `change` goes on to its end, and its caller is cancelled at once.

    Who calls is known inside `change` as outside.
    """

    @functools.wraps(change)
    async def begin(*args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.ensure_future(change(*args, **kwargs))
        _begun.add(task)
        task.add_done_callback(_begun.discard)
        return await asyncio.shield(task)

    return begin


async def settled() -> None:
    """Waits for every change that was begun; before what they write to is closed."""
    while _begun:
        await asyncio.wait(set(_begun))
