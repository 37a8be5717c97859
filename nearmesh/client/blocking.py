"""The sync face: the same Mesh on an event loop of its own, in a thread, for scripts and notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from nearmesh import routing
from nearmesh.client.client import Inputs, Mesh, Parameters, connect
from nearmesh.client.receipt import Answer
from nearmesh.client.sequences import Sequence

T = TypeVar("T")


def connect_sync(
    bootstrap: Path | str | None = None,
    *,
    control_plane: str | None = None,
    ca: Path | str | bytes | None = None,
    token: Path | str | None = None,
    region: str | None = None,
    site: str = "",
) -> BlockingMesh:
    """As `connect`, to enter with a plain `with`."""
    return BlockingMesh(connect(bootstrap, control_plane=control_plane, ca=ca, token=token, region=region, site=site))


class BlockingMesh:
    """A Mesh whose methods block. May be used from several threads."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nearmesh-client", daemon=True)

    def __enter__(self) -> BlockingMesh:
        self._thread.start()
        try:
            self._run(self._mesh.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self._mesh.close())
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

    def warm(self, model: str, *, objective: routing.Objective | None = None, deadline_s: float | None = None) -> None:
        """See `Mesh.warm`."""
        self._run(self._mesh.warm(model, objective=objective, deadline_s=deadline_s))

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
            self._run(wanted.__aexit__(None, None, None))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C while waiting: the call must not live on in the thread.
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


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
