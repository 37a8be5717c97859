"""ONNX Runtime as an engine: one graph, any number of calls at a time, and perhaps a faster way for lone ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from nearmesh.package import Package
from nearmesh_agent.engines.base import Array
from nearmesh_agent.engines.choice import CPU, Layout
from nearmesh_agent.engines.onnx.graph_check import check_graph
from nearmesh_agent.engines.onnx.session import GraphTensor, Provider, Session
from nearmesh_agent.engines.onnx.wide import Wide


class OnnxEngine:
    """A narrow session and, where the layout says so, a wide one for lone calls. Thread-safe."""

    name = "onnxruntime_onnx"

    def __init__(
        self, session: Session, *, variant: str, layout: Layout, outputs: Sequence[str] = (), wide: Wide | None = None
    ) -> None:
        """`outputs` are all of the graph's unless given; without `wide` lone calls are as any other."""
        self.variant = variant
        self.variant_why = ""
        self.opened_s: float | None = None
        self.instances = layout.instances
        self.providers = session.providers
        self.inputs: Mapping[str, GraphTensor] = session.inputs
        self.input_names = tuple(session.inputs)
        self.output_names = tuple(outputs or session.outputs)
        self._layout = layout
        self._session: Session | None = session
        self._wide = wide

    @classmethod
    def load(
        cls,
        path: Path,
        package: Package | None = None,
        *,
        variant: str = "",
        providers: Sequence[Provider] | None = None,
        layout: Layout | None = None,
        threads: int = 0,
    ) -> OnnxEngine:
        """Opens `path` with exactly the providers asked for (the CPU when none are); checks it against any `package`.

        `layout` says how calls share the cores; without it, each takes `threads`, or ONNX Runtime's choice for 0.
        Raises ConfigError for a provider that this build of ONNX Runtime lacks, EngineFailure for one that did not
        start, PackageError for a graph that is broken or is not the one that the package describes.
        """
        layout, providers = layout or Layout(threads=threads), providers or (CPU,)
        session = Session.open(path, providers, threads=layout.threads)
        if package is not None:
            check_graph(path.name, session, package)
        wide = None
        if layout.wide:
            wide = Wide(session, partial(Session.open, path, providers, threads=layout.wide, spinning=True))
        outputs = [spec.name for spec in package.outputs] if package else ()
        return cls(session, variant=variant or path.stem, layout=layout, outputs=outputs, wide=wide)

    @property
    def sessions(self) -> int:
        """How many times the weights are in memory."""
        return int(self._session is not None) + (self._wide.sessions if self._wide else 0)

    @property
    def detail(self) -> str:
        """How calls share the cores, for people."""
        calls = f"{self.instances} calls at a time, threads of each: {self._layout.threads or 'as many as suit it'}"
        if self._wide is None:
            return calls
        return f"{calls}; a second session for lone calls, of {self._layout.wide} threads: {self._wide.detail}"

    def infer(self, inputs: Mapping[str, Array], *, alone: bool = False) -> dict[str, Array]:
        """As the engine's protocol says."""
        if self._wide is not None:
            return self._wide.run(self.output_names, inputs, alone=alone)
        assert self._session is not None, "infer after close"
        return self._session.run(self.output_names, inputs)

    def close(self) -> None:
        """Safe to repeat."""
        if self._wide is not None:
            self._wide.close()
        self._wide = self._session = None
