"""The sync face: the same Mesh on an event loop of its own, in a thread, for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from nearmesh import routing
from nearmesh.client.client import Inputs, Mesh, Parameters, connect
from nearmesh.client.own_loop import OwnLoop
from nearmesh.client.receipt import Answer
from nearmesh.client.sequences import Sequence
from nearmesh.client.tally import Statistics
from nearmesh.errors import ConfigError
from nearmesh.v1 import route_pb2


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
        self._loop = OwnLoop("this mesh is", "use it inside `with connect_sync(...) as mesh:`")
        self._run = self._loop.run

    def __enter__(self) -> BlockingMesh:
        self._loop.open(self._mesh.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.close(self._mesh.close)

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
