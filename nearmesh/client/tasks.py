"""The end of tasks that run beside the calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

log = logging.getLogger(__name__)


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels them and waits until they are over; one that had died of a bug is logged."""
    found = list(tasks)
    for task in found:
        task.cancel()
    for result in await asyncio.gather(*found, return_exceptions=True):
        if isinstance(result, Exception):
            log.error("a task of the client failed", exc_info=result)
