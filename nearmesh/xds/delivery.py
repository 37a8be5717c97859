"""Follows the routes on behalf of all discovery streams: one task hears what changed, and wakes whom it concerns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from nearmesh.errors import MeshError, Overloaded, Unreachable
from nearmesh.routing.table import Listener, RouteSource
from nearmesh.xds.index import BuildModel, View
from nearmesh.xds.subscription import Subscription

log = logging.getLogger(__name__)

# Clients name their own region, so there must be a bound; a cloud has some forty.
MAX_VIEWS = 1000


class Stream:
    """What one stream knows, and whether it has to look again: told often before it looks, it looks once."""

    def __init__(self, subscription: Subscription, check: Callable[[], None] | None) -> None:
        """`check` is a gateway's: it raises once that was removed."""
        self.subscription = subscription
        self.of_gateway = check is not None
        self._check = check
        self._due = self._failed = False
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """A response is due, or what the stream watches has changed."""
        self._due = True
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def recheck(self) -> None:
        """Something in the mesh changed: perhaps the gateway was removed."""
        try:
            if self._check:
                self._check()
        except MeshError:
            self.wake()

    def fail(self) -> None:
        """Changes are no longer heard of."""
        self._failed = True
        self.wake()

    async def news(self) -> None:
        """Waits until there is a reason to look. Raises Unreachable when there will be none."""
        if not self._due:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._due = False
        if self._failed:
            raise Unreachable("the routes cannot be followed at present; open another stream")


class Delivery:
    """All views that somebody watches. Belongs to one event loop; its task runs while there is a stream."""

    def __init__(self, source: RouteSource, build: Mapping[Listener, BuildModel]) -> None:
        self._source = source
        self._build = build
        self._views: dict[tuple[str, Listener], View] = {}
        self._streams: set[Stream] = set()
        self._following: asyncio.Task[None] | None = None

    @contextmanager
    def view(self, region: str, listener: Listener, stream: Stream) -> Iterator[View]:
        """What the peers of `region` see, kept up to date while `stream` lives. Raises Overloaded."""
        view = self._opened(region, listener)
        # A gateway hears of everything; what a client asks for is still to come.
        view.watch(stream, None if stream.of_gateway else frozenset())
        self._streams.add(stream)
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
            self._following.add_done_callback(self._ended)
        try:
            yield view
        finally:
            view.leave(stream)
            if not view.watchers:
                del self._views[region, listener]
            self._streams.discard(stream)
            if not self._streams and self._following:
                self._following.cancel()
                self._following = None

    def _opened(self, region: str, listener: Listener) -> View:
        view = self._views.get((region, listener))
        if view is None:
            if len(self._views) >= MAX_VIEWS:
                raise Overloaded(f"streams for {MAX_VIEWS} regions are open, and {region!r} would be one more")
            view = View(self._source.table(region, listener), self._build[listener])
            self._views[region, listener] = view
        return view

    async def _follow(self) -> None:
        seen = 0
        while True:
            seen = await self._source.changed(seen)
            for stream in self._streams:
                stream.recheck()
            for (region, listener), view in list(self._views.items()):
                for watcher in view.update(self._source.table(region, listener)):
                    watcher.wake()
                # This region's streams have their turn, and the process's other work, before the next region's.
                await asyncio.sleep(0)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """By a bug, unless it was cancelled: no stream may go on and believe that it hears of changes."""
        if task.cancelled():
            return
        log.error("the routes are not followed any more", exc_info=task.exception())
        self._following = None
        for stream in self._streams:
            stream.fail()
