"""Lays a run's folder out for the server app: from what is in the database, whoever ran its rounds before.

What lies there already is kept where it continues what the database has. Otherwise it is of a time when another
control plane went on with the run, and is thrown away.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nearmesh_controlplane.runs.apps import write_app
from nearmesh_controlplane.runs.candidates import Candidates, Parent
from nearmesh_controlplane.runs.folder import Plan, RoundRecord, RunFolder
from nearmesh_controlplane.runs.lineage import told
from nearmesh_controlplane.runs.run import Run

log = logging.getLogger(__name__)

# Folders of runs that have ended are kept of so many, to look into; their history is in the database.
FOLDERS_KEPT = 5

OWN_APP = "app.fab"


class Desk:
    """All folders of one control plane's runs."""

    def __init__(self, base: Path, candidates: Candidates) -> None:
        self._base = base
        self._candidates = candidates

    def folder(self, run: Run) -> RunFolder:
        return RunFolder(self._base / run.id)

    async def lay_out(self, run: Run, rounds: Sequence[RoundRecord], arrays: Mapping[int, bytes], app: bytes) -> None:
        """Raises NotFound, PackageError for a parent that cannot be trained any more."""
        folder = self.folder(run)
        await asyncio.to_thread(self._rounds, folder, rounds, arrays)
        if run.own_app:
            await asyncio.to_thread(self._own, folder, run, app)
            return
        parent = await self._candidates.parent(run.model, run.parent_version)
        if not folder.graph.exists():
            await self._candidates.write_graph(parent, folder.graph)
        await asyncio.to_thread(self._recipe, folder, run, parent)

    def app(self, run: Run) -> Path:
        """What the engine starts."""
        return self.folder(run).path / OWN_APP if run.own_app else self.folder(run).app

    def run_config(self, run: Run) -> dict[str, Any]:
        """What the engine is told with it; the mesh's own app has all of it in itself."""
        return told(run.asked.settings, {}) if run.own_app else {}

    def _rounds(self, folder: RunFolder, rounds: Sequence[RoundRecord], arrays: Mapping[int, bytes]) -> None:
        if not _continues(folder, rounds):
            if folder.path.exists():
                log.warning("threw away folder=%s, which does not continue what the database has", folder.path)
                shutil.rmtree(folder.path)
            folder.make()
            for record in rounds:
                folder.put_round(record, arrays.get(record.number))
        folder.make()
        folder.clear_end()
        folder.release()

    def _own(self, folder: RunFolder, run: Run, app: bytes) -> None:
        folder.write_plan(plan(run, None))
        (folder.path / OWN_APP).write_bytes(app)

    def _recipe(self, folder: RunFolder, run: Run, parent: Parent) -> None:
        found = plan(run, parent)
        folder.write_plan(found)
        folder.write_initial(parent.arrays)
        write_app(
            folder.app,
            recipe=parent.recipe,
            model=run.model,
            metric=parent.metric,
            inputs=parent.inputs,
            settings=found.settings,
            run_folder=folder.path,
        )

    def tidy(self, active: Collection[str]) -> None:
        """Removes folders of runs that are not active, but for the newest."""
        try:
            others = [path for path in self._base.iterdir() if path.is_dir() and path.name not in active]
            for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[FOLDERS_KEPT:]:
                shutil.rmtree(path, ignore_errors=True)
        except OSError as error:
            # Another run's end may be removing the same ones this moment; the next one looks again.
            log.info("folders of runs that have ended stay for now: %s", error)


def plan(run: Run, parent: Parent | None) -> Plan:
    """What the server app is told; without a parent for an app of the data team's own, which needs none of it."""
    asked = run.asked
    more: dict[str, Any] = {"metric": run.metric}
    if parent is not None:
        more = {
            "metric": parent.metric,
            "parameters": list(parent.arrays),
            "tolerance": parent.tolerance,
            "settings": told(asked.settings, parent.settings),
        }
    return Plan(
        run=run.id,
        model=run.model,
        rounds=asked.rounds,
        min_sites=asked.min_sites,
        strategy=asked.strategy,
        strategy_options=dict(asked.strategy_options),
        round_timeout_s=asked.round_timeout_s,
        largest_norm=asked.largest_norm,
        noise_multiplier=asked.privacy.noise_multiplier,
        clipping_norm=asked.privacy.clipping_norm,
        delta=asked.privacy.delta,
        **more,
    )


def _continues(folder: RunFolder, rounds: Sequence[RoundRecord]) -> bool:
    """Whether its rounds are those, and perhaps further ones that nobody has taken over yet."""
    try:
        here = folder.rounds()[: len(rounds)]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    # As text, since what is not a number does not equal itself.
    return [_text(one) for one in here] == [_text(one) for one in rounds]


def _text(record: RoundRecord) -> str:
    return json.dumps(dataclasses.asdict(record), sort_keys=True)
