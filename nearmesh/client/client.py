"""The SDK's front: `connect`, and the Mesh that it opens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from nearmesh import routing, tensors
from nearmesh.client import receipt
from nearmesh.client.attempts import Call, deliver
from nearmesh.client.channels import Channels
from nearmesh.client.control import ControlPlanes
from nearmesh.client.experience import Experience
from nearmesh.client.picker import Choice, Route
from nearmesh.client.planner import Planner
from nearmesh.client.receipt import Answer
from nearmesh.client.routes import Routes
from nearmesh.client.sequences import Sequence
from nearmesh.client.settings import ConnectSettings, Token, from_arguments, from_bootstrap, state_folder
from nearmesh.client.snapshots import client_follower
from nearmesh.client.tally import Statistics
from nearmesh.client.tasks import end
from nearmesh.client.trials import Trials
from nearmesh.client.upkeep import PROBE_LIMIT_S, Prober, report
from nearmesh.errors import ConfigError, InvalidInput, MeshError
from nearmesh.regions import region_near
from nearmesh.snapshot import SnapshotKeeper
from nearmesh.v1 import route_pb2

# The caller's patience when it names none: this, or ten times the model's own deadline if that is more. Nobody should
# see an error because a site is being replaced.
MIN_DEADLINE_S = 10.0
DEADLINE_FACTOR = 10.0

Inputs = Mapping[str, np.ndarray[Any, Any]]
Parameters = Mapping[str, bool | int | float | str]


def connect(
    bootstrap: Path | str | None = None,
    *,
    control_plane: str | None = None,
    ca: Path | str | bytes | None = None,
    token: Path | str | None = None,
    region: str | None = None,
    site: str = "",
    latitude: float | None = None,
    longitude: float | None = None,
    state: Path | str | bool = True,
) -> Mesh:
    """A Mesh to enter with `async with`: from a bootstrap file, or from the other arguments.

    `control_plane` is host:port, of several all with commas between; `ca` a PEM file or its bytes, `token` the bearer
    token or a `Path` to its file. Without a `region`, degrees say where the client is: it counts as in the nearest one.
    `state` is a folder for the last signed routes, from which the client starts when the control plane is away: by
    default `$XDG_STATE_HOME/nearmesh`, False for none. Raises ConfigError, and InvalidInput for degrees off the earth.
    """
    folder = state_folder() if state is True else Path(state) if state else None
    if bootstrap is not None:
        return Mesh(from_bootstrap(Path(bootstrap), folder))
    if not region and latitude is not None and longitude is not None:
        region = region_near(latitude, longitude)
    if not (control_plane and ca and token and region):
        raise ConfigError("connect() needs a bootstrap file, or all of control_plane, ca, token and region")
    return Mesh(from_arguments(control_plane=control_plane, ca=ca, token=token, region=region, site=site, state=folder))


class Mesh:
    """A connection to the mesh: routes, channels to the nodes, and what was measured about them."""

    def __init__(self, settings: ConnectSettings, *, chance: random.Random | None = None) -> None:
        """`chance` shares calls out among nodes; a test brings its own."""
        self.settings = settings
        self._chance = chance or random.Random()
        self._experience = Experience(on_failed=self._failed)
        self._stack = AsyncExitStack()
        self._channels: Channels
        self._routes: Routes
        self._prober: Prober
        self._trials: Trials
        self._planner: Planner

    async def __aenter__(self) -> Mesh:
        settings, token = self.settings, Token(self.settings)
        clock = asyncio.get_running_loop().time
        self._planner = Planner(self._experience, self._chance, clock)
        token.metadata(clock())  # a token that cannot be read is told now, not at the first call
        control = ControlPlanes(settings)
        self._stack.push_async_callback(control.close)
        self._channels = Channels(settings.ca_pem, token)
        self._stack.push_async_callback(self._channels.close)
        self._prober = Prober(self._channels, self._experience)
        self._stack.push_async_callback(self._prober.close)
        self._trials = Trials(self._channels, self._experience)
        self._stack.push_async_callback(self._trials.close)
        keeper = SnapshotKeeper(settings.ca_pem, settings.snapshot_path, region=settings.region)
        self._routes = Routes(control, settings, token, keeper, self._routes_changed)
        self._stack.push_async_callback(self._routes.close)
        follower = client_follower(
            keeper, settings, control, lambda: token.metadata(clock()), self._routes.snapshot_from_peer
        )
        await self._stack.enter_async_context(_background(follower.run()))
        reporting = report(control, self._experience, settings.region, lambda: token.metadata(clock()))
        await self._stack.enter_async_context(_background(reporting))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends everything; harmless when repeated."""
        await self._stack.aclose()

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        outputs: Iterable[str] | None = None,
        objective: routing.Objective | None = None,
        deadline_s: float | None = None,
        version: str = "",
        idempotent: bool = True,
        parameters: Parameters | None = None,
    ) -> Answer:
        """One inference: arrays in, arrays out.

        `inputs` are arrays by input name, with the shapes and dtypes of the model's manifest; BYTES tensors are arrays
        of `bytes` or `str`. `outputs` names those wanted, all if None. `objective` overrides the model's policy for
        this call. `deadline_s` is how long the caller waits, failover included: by default 10 s, or ten times the
        model's `deadline_ms` if that is more. That policy is another thing: the time that routing aims for.

        An idempotent call (the default) that fails or stalls on one node is made on another, and may then run on both;
        so may one that takes longer than is forecast for 95 % (at most one call in ten). With `idempotent=False` it is
        made again only if it cannot have left this machine.

        Raises NotFound (unknown model or version), InvalidInput (wrong name, shape, dtype or value), TooLarge,
        Unauthenticated and PermissionDenied at once, as NotReady with `retry_after_ms` where no node has the model any
        more and bringing it back takes longer; DeadlineExceeded, or the last node's error, at the deadline.
        """
        clock = asyncio.get_running_loop().time
        start_s = clock()
        request = make_request(model, inputs, outputs, version=version, parameters=parameters)
        route = await self._served_route(model, objective, deadline_s)
        limit_s = default_deadline_s(route) if deadline_s is None else deadline_s
        key = (model, objective or "")
        call = Call(
            request=request,
            deadline_s=start_s + limit_s,
            idempotent=idempotent,
            plan=lambda: self._planner.plan(self._routes.latest(route, *key), key),
            pick=lambda choices: self._planner.pick(model, choices),
            objective=objective or "",
            aim_ms=route.deadline_ms,
        )
        self._trials.consider(call, call.plan())
        found = await deliver(call, self._channels, self._experience)
        return receipt.answer(
            found.response,
            found.outputs,
            found.choice,
            self._routes.latest(route, *key),
            forecast=found.forecast,
            attempt_ms=found.attempt_ms,
            total_ms=1000 * (clock() - start_s),
            attempts=found.attempts,
            hedged=found.hedged,
        )

    def statistics(self) -> Statistics:
        """What this client's calls came to: hedges, failovers, ejections, and how right the forecasts were, by node."""
        return self._experience.statistics(now_s=asyncio.get_running_loop().time())

    async def explain(
        self, model: str, *, objective: routing.Objective | None = None, deadline_s: float | None = None
    ) -> route_pb2.Route:
        """The decision that calls go by now: the control plane's latest word, or its snapshot's while it is away.

        Raises as `infer` when no route comes within `deadline_s`.
        """
        route = await self._route(model, objective, deadline_s)
        return self._routes.latest(route, model, objective or "").message

    async def warm(
        self, model: str, *, objective: routing.Objective | None = None, deadline_s: float | None = None
    ) -> None:
        """Opens the connections to the nodes that may answer now, so that the first inference need not wait for one.

        A node that cannot be reached is passed over. Raises NotFound for an unknown model, and as `infer` when no
        route comes within `deadline_s`.
        """
        route = await self._served_route(model, objective, deadline_s)
        choices = self._planner.plan(route, (model, objective or ""))
        placed = await asyncio.gather(*(self._reached(choice) for choice in choices if choice.weight))
        if any(placed):
            return
        for choice in choices:
            if not choice.weight and await self._reached(choice):
                return

    @asynccontextmanager
    async def sequence(
        self,
        model: str,
        *,
        objective: routing.Objective | None = None,
        deadline_s: float | None = None,
        version: str = "",
        parameters: Parameters | None = None,
    ) -> AsyncIterator[Sequence]:
        """A sequence of calls to a stateful model, on one stream to one node; `deadline_s` is for each call.

        Raises as `infer`; its calls raise SequenceLost when the node is lost.
        """
        route = await self._served_route(model, objective, deadline_s)
        key = (model, objective or "")
        sequence = Sequence(
            self._channels,
            self._experience,
            lambda: self._routes.latest(route, *key),
            lambda: self._planner.arranged(self._routes.latest(route, *key), key),
            lambda inputs, outputs: make_request(model, inputs, outputs, version=version, parameters=parameters),
            default_deadline_s(route) if deadline_s is None else deadline_s,
        )
        async with sequence:
            yield sequence

    async def _route(self, model: str, objective: str | None, deadline_s: float | None) -> Route:
        if objective is not None:
            routing.parse_objective(objective)
        return await self._routes.get(model, objective or "", MIN_DEADLINE_S if deadline_s is None else deadline_s)

    async def _served_route(self, model: str, objective: str | None, deadline_s: float | None) -> Route:
        """For a call: a model that no node has since nobody asked for it is brought back. Raises NotReady."""
        clock = asyncio.get_running_loop().time
        start_s = clock()
        route = await self._route(model, objective, deadline_s)
        if route.served:
            return route
        limit_s = default_deadline_s(route) if deadline_s is None else deadline_s
        await self._routes.bring_back(model, objective or "", limit_s - (clock() - start_s))
        return self._routes.latest(route, model, objective or "")

    async def _reached(self, choice: Choice) -> bool:
        with suppress(MeshError):
            await self._channels.live(choice.endpoint, PROBE_LIMIT_S)
            return True
        return False

    def _routes_changed(self) -> None:
        endpoints = self._routes.endpoints()
        self._channels.retain(endpoints)
        self._prober.follow(endpoints, self._planner.probed(self._routes.present()))

    def _failed(self, node: str) -> None:
        self._prober.wake(node)


def default_deadline_s(route: Route) -> float:
    """How long a caller waits who did not say."""
    return max(MIN_DEADLINE_S, DEADLINE_FACTOR * route.deadline_ms / 1000)


def make_request(
    model: str,
    inputs: Inputs,
    outputs: Iterable[str] | None,
    *,
    version: str = "",
    parameters: Parameters | None = None,
) -> service_pb2.ModelInferRequest:
    """The message for one inference, with the wish for a receipt. Raises InvalidInput."""
    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    request = tensors.encode_request(model, arrays, version=version, outputs=outputs or ())
    for name, value in {receipt.ASK: True, **(parameters or {})}.items():
        setattr(request.parameters[name], _parameter_field(name, value), value)
    return request


def _parameter_field(name: str, value: object) -> str:
    # bool first: it is an int as well.
    for kind, field in ((bool, "bool_param"), (int, "int64_param"), (float, "double_param"), (str, "string_param")):
        if isinstance(value, kind):
            return field
    raise InvalidInput(f"parameter {name!r} is {value!r}; expected a bool, int, float or str")


@asynccontextmanager
async def _background(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end([task])
