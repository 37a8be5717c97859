"""What the control plane expects of the models that this gateway's callers ask for: kept, so that calls can be
compared with it as they end."""

from __future__ import annotations

import logging
from collections.abc import Callable

import grpc

from nearmesh.gateway.calls import Prediction
from nearmesh.v1 import route_pb2, route_pb2_grpc

log = logging.getLogger(__name__)

# A prediction is asked for again when it is as old as this, if there were calls since; some at a time.
REFRESH_S = 5.0
AT_A_TIME = 20
TIMEOUT_S = 2.0
# Models times objectives; which there are, callers say.
MAX_KEPT = 1_000

Key = tuple[str, str]


class Predictions:
    """`get` while calls end, `refresh` once a second."""

    def __init__(self, region: str, clock: Callable[[], float]) -> None:
        self._region = region
        self._clock = clock
        self._kept: dict[Key, tuple[float, Prediction]] = {}
        self._asked: dict[Key, None] = {}

    def get(self, model: str, objective: str) -> Prediction | None:
        """What is expected, as far as it is known; the next `refresh` sees to it."""
        key = (model, objective)
        found = self._kept.get(key)
        if (found is None or self._clock() - found[0] > REFRESH_S) and len(self._asked) < MAX_KEPT:
            self._asked[key] = None
        return found[1] if found else None

    async def refresh(self, routes: route_pb2_grpc.RouteServiceStub) -> None:
        """Asks for what calls missed; a control plane that is away costs nothing but the comparison."""
        for key in list(self._asked)[:AT_A_TIME]:
            del self._asked[key]
            request = route_pb2.ResolveRequest(model=key[0], region=self._region, objective=key[1])
            try:
                route = await routes.Resolve(request, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                log.debug("no prediction for model=%s: %s", key[0], error)
                return
            self._kept.pop(key, None)
            self._kept[key] = (self._clock(), Prediction.of(route))
            if len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]
