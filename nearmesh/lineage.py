"""`lineage.json`: where a version comes from that federated rounds made, in words that name no site.

It travels as a file of the artifact, so that whoever has the version has it too. Sites are pseudonyms: a served model
does not say whose data it has seen, and the control plane that ran the rounds knows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nearmesh.document import Document
from nearmesh.errors import PackageError

log = logging.getLogger(__name__)

LINEAGE_FILE = "lineage.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The version that rounds began from."""

    version: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLineage:
    """One site's part."""

    # A pseudonym.
    site: str
    # In how many of the rounds its update counted.
    rounds: int
    # That it trained on.
    examples: int
    # On what it held back, with the parameters of the parent and with those of this version.
    metrics_before: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """Differential privacy of the sites' updates: what was spent, and by which noise."""

    epsilon: float
    delta: float
    noise_multiplier: float
    clipping_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage(Document):
    """Of one version."""

    FILE: ClassVar[str] = LINEAGE_FILE

    run: str
    # The one whose parameters the version has; the run's last.
    round: int
    parent: Parent
    strategy: str
    strategy_options: dict[str, float] = field(default_factory=dict)
    # What the recipe was told.
    settings: dict[str, Any] = field(default_factory=dict)
    # The name of the figure that was judged; higher is better.
    metric: str
    sites: tuple[SiteLineage, ...]
    # Over the sites, weighted by examples, with the parameters of the parent and with those of this version.
    metrics_before: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    # None: no noise was added.
    privacy: Privacy | None = None
    # Who started the run, and when it began, seconds since the epoch.
    started_by: str
    started_at_s: float

    @property
    def examples(self) -> int:
        """Of all sites together."""
        return sum(site.examples for site in self.sites)


def run_of(folder: Path) -> str:
    """The federated run that made the version; empty: none did, or it cannot be read here.

    It is said in receipts alone: a lineage of a newer mesh, or a file of a package's own by that name, is no reason not
    to serve.
    """
    try:
        lineage = Lineage.read(folder)
    except PackageError as error:
        log.warning("receipts will not say which run made the version in %s: %s", folder, error)
        return ""
    return lineage.run if lineage else ""
