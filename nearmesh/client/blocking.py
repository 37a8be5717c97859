"""The sync face: the same Mesh on an event loop of its own, in a thread, for scripts and notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from nearmesh import routing
from nearmesh.client.client import Inputs, Mesh, Parameters, connect
from nearmesh.client.receipt import Answer
from nearmesh.client.sequences import Sequence
from nearmesh.client.tally import Statistics
from nearmesh.client.tasks import end
from nearmesh.errors import ConfigError, Unreachable
from nearmesh.v1 import route_pb2

T = TypeVar("T")


def connect_sync(
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
) -> BlockingMesh:
    """As `connect`, to enter with a plain `with`."""
    return BlockingMesh(
        connect(
            bootstrap,
            control_plane=control_plane,
            ca=ca,
            token=token,
            region=region,
            site=site,
            latitude=latitude,
            longitude=longitude,
            state=state,
        )
    )


class BlockingMesh:
    """A Mesh whose methods block, within a `with`. May be used from several threads.

    Leaving the `with` ends the calls of other threads, with Unreachable.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        # Made when it is entered, so that a mesh that never is leaves nothing behind.
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._open = False
        # A call is handed to the loop before the end of everything, or not at all.
        self._gate = threading.Lock()

    def __enter__(self) -> BlockingMesh:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nearmesh-client", daemon=True)
        self._thread.start()
        try:
            _result(asyncio.run_coroutine_threadsafe(self._mesh.__aenter__(), self._loop))
        except BaseException:
            self._stop()
            raise
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._gate:
            self._open = False
        try:
            _result(asyncio.run_coroutine_threadsafe(self._end(), self._loop))
        finally:
            self._stop()

    def infer(
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
        """See `Mesh.infer`."""
        return self._run(
            self._mesh.infer(
                model,
                inputs,
                outputs=outputs,
                objective=objective,
                deadline_s=deadline_s,
                version=version,
                idempotent=idempotent,
                parameters=parameters,
            )
        )

    def explain(
        self, model: str, *, objective: routing.Objective | None = None, deadline_s: float | None = None
    ) -> route_pb2.Route:
        """See `Mesh.explain`."""
        return self._run(self._mesh.explain(model, objective=objective, deadline_s=deadline_s))

    def warm(self, model: str, *, objective: routing.Objective | None = None, deadline_s: float | None = None) -> None:
        """See `Mesh.warm`."""
        self._run(self._mesh.warm(model, objective=objective, deadline_s=deadline_s))

    def statistics(self) -> Statistics:
        """See `Mesh.statistics`."""

        async def ask() -> Statistics:
            return self._mesh.statistics()

        return self._run(ask())

    @contextmanager
    def sequence(
        self,
        model: str,
        *,
        objective: routing.Objective | None = None,
        deadline_s: float | None = None,
        version: str = "",
        parameters: Parameters | None = None,
    ) -> Iterator[BlockingSequence]:
        """See `Mesh.sequence`."""
        wanted = self._mesh.sequence(
            model, objective=objective, deadline_s=deadline_s, version=version, parameters=parameters
        )
        sequence = self._run(wanted.__aenter__())
        try:
            yield BlockingSequence(sequence, self)
        finally:
            # With a mesh that was left meanwhile the sequence has ended too.
            with suppress(ConfigError):
                self._run(wanted.__aexit__(None, None, None))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._gate:
            if not self._open:
                work.close()
                raise ConfigError("this mesh is not open: use it inside `with connect_sync(...) as mesh:`")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return _result(future)
        except CancelledError:
            raise Unreachable("the mesh was closed while this call was under way") from None

    async def _end(self) -> None:
        """On the loop: ends the mesh, and whatever other threads still wait for."""
        try:
            await end(asyncio.all_tasks() - {asyncio.current_task()})
            await self._mesh.close()
        finally:
            await asyncio.get_running_loop().shutdown_asyncgens()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except BaseException:
        # Ctrl-C while waiting: the call must not live on in the thread.
        future.cancel()
        raise


class BlockingSequence:
    """A Sequence whose calls block."""

    def __init__(self, sequence: Sequence, mesh: BlockingMesh) -> None:
        self._sequence = sequence
        self._mesh = mesh

    @property
    def node(self) -> str | None:
        """See `Sequence.node`."""
        return self._sequence.node

    def infer(
        self, inputs: Inputs, *, last: bool = False, outputs: Iterable[str] = (), deadline_s: float | None = None
    ) -> Answer:
        """See `Sequence.infer`."""
        work = self._sequence.infer(inputs, last=last, outputs=outputs, deadline_s=deadline_s)
        return self._mesh._run(work)
