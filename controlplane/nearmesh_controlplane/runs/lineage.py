"""Where a run's version comes from, as it is told to whoever has the version: sites are pseudonyms there. Pure.

It follows from what is on disk alone, so that a version which is built again has the same bytes.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from nearmesh.lineage import Lineage, Parent, Privacy, SiteLineage
from nearmesh_controlplane.runs.folder import COUNTED, Judged, RoundRecord
from nearmesh_controlplane.runs.run import Run


def lineage(run: Run, rounds: Sequence[RoundRecord], settings: Mapping[str, Any]) -> Lineage:
    """Of the version that the run's last round makes; `settings` are those that the recipe was told."""
    before = next((record for record in rounds if record.number == 0), None)
    last = rounds[-1]
    privacy = run.asked.privacy
    return Lineage(
        run=run.id,
        round=last.number,
        parent=Parent(version=run.parent_version, digest=run.parent_digest),
        strategy=run.asked.strategy,
        strategy_options=dict(run.asked.strategy_options),
        settings=dict(settings),
        metric=run.metric,
        sites=tuple(sorted(_sites(run, rounds, before), key=lambda site: site.site)),
        metrics_before=_finite(before.metrics if before else {}),
        metrics=_pooled(run.judged or ()) or _finite(last.metrics),
        privacy=Privacy(
            epsilon=last.epsilon if math.isfinite(last.epsilon) else 0.0,
            delta=privacy.delta,
            noise_multiplier=privacy.noise_multiplier,
            clipping_norm=privacy.clipping_norm,
        )
        if privacy.noise_multiplier
        else None,
        started_by=run.actor,
        started_at_s=run.created_at_s,
    )


def told(asked: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe or the app is told: its own settings, with those that were asked for over them.

    Raises tomllib.TOMLDecodeError for what is no value of TOML.
    """
    return {**defaults, **{name: tomllib.loads(f"value = {text}")["value"] for name, text in asked.items()}}


def _sites(run: Run, rounds: Sequence[RoundRecord], before: RoundRecord | None) -> list[SiteLineage]:
    """Of every site whose update counted in any round."""
    parent = {site.node: site.metrics for site in before.sites} if before else {}
    judged = {one.node: one for one in run.judged or () if not one.failed}
    counted: dict[str, int] = {}
    examples: dict[str, int] = {}
    for record in rounds:
        for site in record.sites:
            if record.number and site.answer == COUNTED:
                counted[site.node] = counted.get(site.node, 0) + 1
                examples[site.node] = site.examples
    return [
        SiteLineage(
            site=run.nodes[node],
            rounds=times,
            examples=examples[node],
            metrics_before=_finite(parent.get(node, {})),
            metrics=_finite(judged[node].metrics if node in judged else {}),
        )
        for node, times in counted.items()
        if node in run.nodes
    ]


def _pooled(judged: Sequence[Judged]) -> dict[str, float]:
    """What the sites say of the candidate, weighted by their examples."""
    saying = [one for one in judged if not one.failed and one.examples]
    names = set.intersection(*(set(_finite(one.metrics)) for one in saying)) if saying else set()
    total = sum(one.examples for one in saying)
    return {name: sum(one.metrics[name] * one.examples for one in saying) / total for name in sorted(names)}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
