"""What runs need of the makers of versions: a seam, so that runs are tested without ONNX and packages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nearmesh.lineage import Lineage
from nearmesh_controlplane.catalog.catalog import Version
from nearmesh_controlplane.runs.folder import Arrays
from nearmesh_controlplane.runs.run import Check, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the package's [training.gate] lets a candidate lose and change, against its parent."""

    # Of the metric, at any site.
    largest_site_loss: float = 0.02
    # Of the metric: the mean over the sites, weighted by examples.
    smallest_mean_gain: float = 0.0
    # L2 norm of the change, in norms of the parent's parameters.
    largest_change: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A published version that rounds can begin from: what its [training] says, and its parameters."""

    model: str
    version: str
    digest: str
    # The recipe's file, as it was published.
    recipe: bytes
    # By the names of the graph's initializers, in the package's order.
    arrays: Arrays
    metric: str
    tolerance: float
    # Of the graph, by which sites know their data's columns.
    inputs: tuple[str, ...] = ()
    settings: Mapping[str, Any]
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A version that is ready to be published: its variants are made, and judged."""

    version: str
    # One for each variant; a version of which any failed is not published.
    checks: tuple[Check, ...]
    # What `publish` needs; nobody else looks into it.
    artifact: Any = None


class Candidates(Protocol):
    """Each call may be repeated after anything was killed. None of them blocks the loop."""

    async def parent(self, model: str, version: str) -> Parent:
        """Raises NotFound, and PackageError where the version cannot be trained."""
        ...

    async def write_graph(self, parent: Parent, target: Path) -> None:
        """The graph with the parent's parameters, into the file `target`: a graph that is trained is one file."""
        ...

    async def build(self, run: Run, arrays: Arrays, lineage: Lineage) -> Built:
        """The run's parent with other parameters, as `run.new_version`: packed, quantized, and judged.

        Published already: what was published, not made again. A variant that does not pass its own gate is a failed
        check. Raises PackageError where no version comes of it.
        """
        ...

    async def publish(self, built: Built, actor: str) -> Version:
        """Signed and in the catalog when this returns. Published already: what was published then.

        Raises AlreadyExists where the name is taken by something else.
        """
        ...
