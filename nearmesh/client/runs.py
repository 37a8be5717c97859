"""Federated runs as a program asks for them: started once whatever the network does, and watched over restarts.

Answers are the contract's own messages (`nearmesh.v1.run_pb2`). Every failure is an error of `nearmesh.errors`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from nearmesh.client.connection import Connection
from nearmesh.errors import DeadlineExceeded, NotLeader, Unreachable, Unsupported
from nearmesh.v1 import run_pb2, run_pb2_grpc

T = TypeVar("T")

# A machine that starts anew, or another control plane that takes over, is there by then; the run goes on anyhow.
AWAY_S = 120.0
AGAIN_S = 0.5

# Nothing more happens in these by itself. A trained run may still be promoted.
ENDED = frozenset(
    {
        run_pb2.RUN_STATE_TRAINED,
        run_pb2.RUN_STATE_SERVED,
        run_pb2.RUN_STATE_REFUSED,
        run_pb2.RUN_STATE_ROLLED_BACK,
        run_pb2.RUN_STATE_STOPPED,
        run_pb2.RUN_STATE_FAILED,
    }
)


class Runs:
    """The runs of one mesh, over an operator's connection: `AdminClient.runs`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._service = run_pb2_grpc.RunServiceStub(connection.channel)

    async def start(self, request: run_pb2.StartRunRequest) -> run_pb2.Run:
        """Answered when the run is on the control plane's disk. The same idempotency key again is the same run.

        Without a key it gets one. Raises InvalidInput, NotFound for a model or version that is not there, and
        Unreachable or DeadlineExceeded that name the key, since the run may have begun.
        """
        asked = run_pb2.StartRunRequest()
        asked.CopyFrom(request)
        asked.idempotency_key = request.idempotency_key or uuid.uuid4().hex
        try:
            return await self._call(self._service.Start, asked)
        except (Unreachable, DeadlineExceeded) as error:
            raise type(error)(
                f"{error.message}; whether the run has begun is not known: start it again with the idempotency key "
                f"{asked.idempotency_key}, and it is one run"
            ) from None

    async def get(self, run: str) -> run_pb2.Run:
        """Raises NotFound."""
        return await self._call(self._service.Get, run_pb2.GetRunRequest(run=run))

    async def list(self, model: str = "", limit: int = 0) -> list[run_pb2.Run]:
        """Of a model or of all, newest first, without the rounds' sites; at most 50 if no limit is given."""
        response = await self._call(self._service.List, run_pb2.ListRunsRequest(model=model, limit=limit))
        return list(response.runs)

    async def stop(self, run: str) -> run_pb2.Run:
        """Ends it; what its rounds have made so far is kept. Raises NotFound, InvalidInput when it has ended."""
        return await self._call(self._service.Stop, run_pb2.StopRunRequest(run=run))

    async def promote(self, run: str, options: run_pb2.PromoteOptions | None = None) -> run_pb2.Run:
        """Takes a trained run through the gate into serving. Raises NotFound, InvalidInput when it is not trained."""
        return await self._call(self._service.Promote, run_pb2.PromoteRunRequest(run=run, options=options))

    async def watch(
        self, run: str, *, known: bool = False, on_away: Callable[[], None] | None = None
    ) -> AsyncGenerator[run_pb2.Run, None]:
        """As it is now, and whenever something of it changes, until it has ended; over restarts of the control plane.

        `on_away` hears of each that begins. Raises NotFound; Unreachable after `AWAY_S` without a control plane, or
        at once when none was there from the start, unless the run is `known` to be there.
        """
        last: run_pb2.Run | None = None
        absence = _Absence(run, known)
        fresh = False
        while True:
            try:
                async with aclosing(self._watch(run, fresh)) as stream:
                    async for found in stream:
                        absence.over()
                        # After a restart the first word repeats the last one.
                        if found != last:
                            yield found
                        last = found
                if last is not None and last.state in ENDED:
                    return
            except (Unreachable, NotLeader) as error:
                if absence.goes_on(error) and on_away:
                    on_away()
            fresh = True
            await asyncio.sleep(AGAIN_S)

    async def _watch(self, run: str, fresh: bool) -> AsyncGenerator[run_pb2.Run, None]:
        """Over the connection that is there, or a `fresh` one: another control plane may lead now."""
        connection = self._connection.another() if fresh else self._connection
        if fresh:
            await connection.open()
        try:
            service = run_pb2_grpc.RunServiceStub(connection.channel)
            async with aclosing(connection.stream(service.Watch, run_pb2.GetRunRequest(run=run))) as stream:
                async for found in stream:
                    yield found
        except Unsupported as error:
            raise _named(error) from None
        finally:
            if fresh:
                await connection.close()

    async def _call(self, method: Callable[..., Awaitable[T]], request: Any) -> T:
        try:
            return await self._connection.call(method, request)
        except Unsupported as error:
            raise _named(error) from None


class _Absence:
    """How long nobody answers. Unless the run is `known` to be there, who never answered is waited for in vain."""

    def __init__(self, run: str, known: bool) -> None:
        self._run = run
        self._known = known
        self._began_s: float | None = None

    def over(self) -> None:
        self._known, self._began_s = True, None

    def goes_on(self, error: Unreachable | NotLeader) -> bool:
        """Whether that is news. Raises `error` when it is too long, or was so from the start."""
        if not self._known:
            raise error
        now_s = time.monotonic()
        if self._began_s is None:
            self._began_s = now_s
            return True
        if now_s - self._began_s > AWAY_S:
            words = (
                f"{error.message}; the run goes on by itself, and `nearmesh run watch {self._run}` shows how far it is"
            )
            raise type(error)(words) from None
        return False


def _named(error: Unsupported) -> Unsupported:
    """One of before says only which method it lacks; another one may say what it lacks to offer them."""
    return Unsupported(f"this control plane does not offer federated runs: {error.message}")
