"""The routes in use, each kept current by a watch on the control plane.

When the control plane is away the last route goes on being used, and who has none yet gets it from the snapshot. A
model that the control plane does not know is an error for whoever asks, at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import grpc

from nearmesh.backoff import Backoff
from nearmesh.client.channels import raise_if_cancelled
from nearmesh.client.control import ControlPlanes
from nearmesh.client.picker import Endpoint, Route
from nearmesh.client.settings import ConnectSettings, Token
from nearmesh.client.tasks import end
from nearmesh.errors import InvalidInput, MeshError, NotFound, NotReady, PermissionDenied, Unauthenticated, Unreachable
from nearmesh.rpc import from_rpc_error
from nearmesh.snapshot import SnapshotKeeper
from nearmesh.v1 import route_pb2

log = logging.getLogger(__name__)

# Waiting helps against none of these; who has no route yet is told at once.
_FINAL = (NotFound, InvalidInput, Unauthenticated, PermissionDenied)
_FIRST_RETRY_S, _MAX_RETRY_S = 0.2, 5.0

# The control plane has this long to answer before the snapshot is asked for a first route.
CONTROL_PLANE_FIRST_S = 1.0

# The control plane has this long to say when a model is back; while it is brought back it is asked no sooner again.
ASK_WITHIN_S, FIRST_LOOK_S = 2.0, 0.2

# A node that has left a route is kept as a last resort for this long: no longer than a removed one may be asked.
LEFT_KEPT_S = 25.0

# A model and the objective that was asked for, "" for the model's own.
Key = tuple[str, str]


@dataclass(slots=True)
class _Watched:
    """One route, or the latest error while there is none."""

    route: Route | None = None
    error: MeshError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    # Set while the route names a node that is ready.
    served: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    # The control plane tells, now.
    current: bool = False
    # What the route says was so at this time, seconds since the epoch.
    known_s: float = 0.0
    # Every endpoint that the route had lately, by node, and when it was last named.
    seen: dict[str, tuple[Endpoint, float]] = field(default_factory=dict)

    def take(self, route: Route, now_s: float, removed: Collection[str]) -> None:
        """The control plane has spoken; of those that it named before, the mesh has `removed` some."""
        self.seen |= {endpoint.node: (endpoint, now_s) for endpoint in route.endpoints}
        self.seen = {node: (e, last_s) for node, (e, last_s) in self.seen.items() if last_s > now_s - LEFT_KEPT_S}
        left = [endpoint for endpoint, _ in self.seen.values() if endpoint.node not in removed]
        self.route, self.error = route.keeping(left), None
        if route.served:
            self.served.set()
        else:
            self.served.clear()
        self.changed.set()

    def lost(self, error: MeshError) -> None:
        """The control plane does not tell any more."""
        if self.current:
            self.current, self.known_s = False, time.time()
        self.error = error


class Routes:
    """The cache. `on_change` is told when any route has changed. `close` when done."""

    def __init__(
        self,
        control_planes: ControlPlanes,
        settings: ConnectSettings,
        token: Token,
        keeper: SnapshotKeeper,
        on_change: Callable[[], None],
    ) -> None:
        self._control_planes = control_planes
        self._settings = settings
        self._token = token
        self._keeper = keeper
        self._on_change = on_change
        self._watched: dict[Key, _Watched] = {}

    async def get(self, model: str, objective: str, timeout_s: float) -> Route:
        """The present route; waits for the first one.

        Raises NotFound for an unknown model, other final errors of the control plane, and Unreachable when no route
        came within `timeout_s`.
        """
        watched = self._watch(model, objective)
        if watched.route is None:
            first_s = min(timeout_s, CONTROL_PLANE_FIRST_S)
            if not await _within(watched.changed, first_s):
                self._from_snapshot((model, objective), watched)
                if not await _within(watched.changed, timeout_s - first_s):
                    raise self._no_route(model, watched.error)
        if watched.route is None:
            assert watched.error is not None
            raise watched.error
        return watched.route

    async def bring_back(self, model: str, objective: str, timeout_s: float) -> None:
        """Where no node has the model since nobody asked for it for long: asks for it, and waits until one has.

        Raises NotReady with the time that it takes where that is more than there is. Returns where nobody brings it.
        """
        watched, loop = self._watch(model, objective), asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        # Who is told of nothing now goes by what was so before.
        while watched.current and not watched.served.is_set():
            takes_s = await self._asked_back((model, objective)) / 1000
            if not takes_s:
                return
            if takes_s > end_s - loop.time():
                raise NotReady(
                    f"no node has {model!r} at present, since nobody asked for it for long; it is being brought back, "
                    f"which takes about {takes_s:.1f} s, and the call has {max(0.0, end_s - loop.time()):.1f} s left",
                    retry_after_ms=max(1, round(1000 * takes_s)),
                )
            await _within(watched.served, min(max(takes_s, FIRST_LOOK_S), end_s - loop.time()))

    async def _asked_back(self, key: Key) -> float:
        """In how many milliseconds somebody has it; 0 where somebody has, or nobody knows."""
        request = self._request(key)
        address = self._control_planes.address
        metadata = self._token.metadata(asyncio.get_running_loop().time())
        try:
            route = await self._control_planes.routes(address).Resolve(request, timeout=ASK_WITHIN_S, metadata=metadata)
        except grpc.aio.AioRpcError as failure:
            raise_if_cancelled(failure)
            log.debug("nobody was asked to bring model=%s back: %s", key[0], from_rpc_error(failure))
            return 0.0
        return 0.0 if route.candidates else route.ready_in_ms

    def _request(self, key: Key) -> route_pb2.ResolveRequest:
        return route_pb2.ResolveRequest(
            model=key[0], objective=key[1], region=self._settings.region, site=self._settings.site
        )

    def latest(self, route: Route, model: str, objective: str) -> Route:
        """The newest route for the key that `route` came from."""
        watched = self._watched.get((model, objective))
        return watched.route if watched and watched.route else route

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint of every route, by node once."""
        routes = self.present().values()
        return list({endpoint.node: endpoint for route in routes for endpoint in route.endpoints}.values())

    def present(self) -> dict[Key, Route]:
        """Every route in use."""
        return {key: watched.route for key, watched in self._watched.items() if watched.route}

    def snapshot_from_peer(self) -> None:
        """A node had a newer snapshot: for those whom the control plane does not tell."""
        for key, watched in list(self._watched.items()):
            if not watched.current:
                self._from_snapshot(key, watched)

    async def close(self) -> None:
        """Ends every watch."""
        await end(watched.task for watched in self._watched.values() if watched.task)
        self._watched.clear()

    def _watch(self, model: str, objective: str) -> _Watched:
        key = (model, objective)
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = _Watched()
            watched.task = asyncio.create_task(self._keep(key, watched), name=f"watch {model}")
        return watched

    async def _keep(self, key: Key, watched: _Watched) -> None:
        backoff = Backoff(_FIRST_RETRY_S, _MAX_RETRY_S)
        over = False
        while not over and self._watched.get(key) is watched:
            try:
                over = await self._watch_once(key, watched, backoff)
            except Exception as bug:
                # Unseen, the route would stay for ever as it is at this moment, whatever the mesh says.
                log.exception("the watch met a bug, and begins anew model=%s", key[0])
                watched.lost(MeshError(f"the route could not be followed: {bug!r}"))
                await asyncio.sleep(backoff.next_s())

    async def _watch_once(self, key: Key, watched: _Watched, backoff: Backoff) -> bool:
        """Follows until the watch ends, and sees to what there is instead; whether it is of no use to try again."""
        address = self._control_planes.address
        try:
            await self._follow(key, watched, backoff, address)
            error: MeshError = Unreachable("the control plane ended the watch")
        except grpc.aio.AioRpcError as failure:
            raise_if_cancelled(failure)
            error = from_rpc_error(failure)
        except MeshError as failure:
            error = failure
        watched.lost(error)
        if isinstance(error, NotFound) or (watched.route is None and isinstance(error, _FINAL)):
            self._drop(key, watched)
            return True
        log.debug("watch model=%s failed: %s", key[0], error)
        self._from_snapshot(key, watched)
        if self._control_planes.failed(address, error):
            await asyncio.sleep(backoff.next_s())
        return False

    async def _follow(self, key: Key, watched: _Watched, backoff: Backoff, address: str) -> None:
        request = self._request(key)
        metadata = self._token.metadata(asyncio.get_running_loop().time())
        async for message in self._control_planes.routes(address).Watch(request, metadata=metadata):
            watched.current = True
            self._control_planes.answered()
            self._take(watched, message)
            # Not before it was of use: else a message that nobody can read would be asked for again without a pause.
            backoff.reset()

    def _take(self, watched: _Watched, message: route_pb2.Route) -> None:
        known = self._keeper.known
        removed = known.removed if known else frozenset[str]()
        watched.take(Route.from_message(message), asyncio.get_running_loop().time(), removed)
        self._on_change()

    def _from_snapshot(self, key: Key, watched: _Watched) -> None:
        """The route that the control plane signed last, if the snapshot is newer than the route in use."""
        try:
            routes = self._keeper.routes()
            if watched.route and watched.known_s >= routes.issued_at_s:
                return
            message = routes.route(key[0], self._settings.region, key[1])
        except MeshError as error:
            log.debug("no route from the snapshot model=%s: %s", key[0], error)
            return
        if watched.route is None:
            log.warning(
                "the control plane at %s does not answer; going by its routes of %s UTC model=%s",
                self._settings.control_plane,
                time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(routes.issued_at_s)),
                key[0],
            )
        self._take(watched, message)
        watched.known_s = routes.issued_at_s

    def _drop(self, key: Key, watched: _Watched) -> None:
        """Tells whoever waits; the next one who asks starts a new watch."""
        log.info("no route model=%s: %s", key[0], watched.error)
        watched.route = None
        watched.changed.set()
        if self._watched.get(key) is watched:
            del self._watched[key]
        self._on_change()

    def _no_route(self, model: str, error: MeshError | None) -> Unreachable:
        why = error.message if error else "it has not answered"
        try:
            self._keeper.routes()
            instead = f"the snapshot of its routes does not have {model}"
        except MeshError as failure:
            instead = failure.message
        return Unreachable(
            f"no route for {model} from the control plane at {self._settings.control_plane}: {why}; {instead}"
        )


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Whether it happened in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()
