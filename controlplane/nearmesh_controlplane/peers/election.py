"""Asks the shared database for the leadership, again and again, and says when it came or went."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from nearmesh.errors import MeshError
from nearmesh_controlplane.peers import lease
from nearmesh_controlplane.peers.leadership import Leadership
from nearmesh_controlplane.peers.role import Self
from nearmesh_controlplane.peers.wire import connected

log = logging.getLogger(__name__)

# An answer that takes longer leaves no time to ask anew before the lease is over.
CLAIM_WITHIN_S = 1.2
GIVE_BACK_WITHIN_S = 1.0
# After a connection that broke or could not be made.
RECONNECT_AFTER_S = 0.2


def steady_clock() -> float:
    """Runs evenly, also while the machine sleeps: what `Leadership` counts by."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Election:
    """Keeps one control plane's place in the election. `on_change` is called when it begins or ceases to lead."""

    def __init__(self, url: str, me: Self, leadership: Leadership, on_change: Callable[[], None]) -> None:
        self._url = url
        self._me = me
        self._leadership = leadership
        self._on_change = on_change
        self._seen_term = 0
        self._hurry = asyncio.Event()

    def look_now(self) -> None:
        """Somebody gave the leadership back, or took it."""
        self._hurry.set()

    async def run(self) -> None:
        """For ever; when it is cancelled, others may lead at once."""
        try:
            while True:
                try:
                    async with connected(self._url) as connection:
                        await self._run_with(connection)
                except (MeshError, TimeoutError) as error:
                    log.warning("the lease on the leadership was not asked for: %s", error or "no answer in time")
                self._leadership.unanswered(steady_clock())
                self._look()
                await asyncio.sleep(RECONNECT_AFTER_S)
        finally:
            await self._give_back()

    async def _run_with(self, connection: Any) -> None:
        await lease.show(connection, self._me)
        await lease.tell(connection, self._me.incarnation, "control_planes")
        while True:
            asked_at_s = steady_clock()
            async with asyncio.timeout(CLAIM_WITHIN_S):
                holder = await lease.claim(connection, self._me, self._leadership.lease_s)
                self._leadership.told(holder, asked_at_s=asked_at_s, now_s=steady_clock())
                self._look()
                await lease.show(connection, self._me)
            await self._wait()

    async def _wait(self) -> None:
        self._hurry.clear()
        try:
            async with asyncio.timeout(self._leadership.next_claim_in_s(steady_clock())):
                await self._hurry.wait()
        except TimeoutError:
            pass

    def _look(self) -> None:
        term = self._leadership.term(steady_clock())
        if term != self._seen_term:
            self._seen_term = term
            if term:
                log.info("leads term=%d", term)
            else:
                log.info("follows leader=%s", self._leadership.holder.id if self._leadership.holder else "unknown")
            self._on_change()

    async def _give_back(self) -> None:
        held = self._leadership.term(steady_clock())
        self._leadership.given_up()
        self._look()
        if held:
            try:
                async with asyncio.timeout(GIVE_BACK_WITHIN_S), connected(self._url) as connection:
                    await lease.give_back(connection, self._me)
            except (MeshError, TimeoutError) as error:
                log.warning("the leadership was not given back, and ends by itself: %s", error or "no answer in time")
