"""The run itself: every store takes all rows in, one after the other; then they take turns with searches, and then each
is ended and started.

A store that has no turn is idle. What other processes take of the machine meanwhile is part of every measurement, so
that a disturbance is seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import times
from benchmarks.serving.environments import make, versions
from benchmarks.serving.processes import busy_s
from benchmarks.vectors.corpus import kept
from benchmarks.vectors.environments import ENVIRONMENTS
from benchmarks.vectors.figures import Cell, Filled, Start
from benchmarks.vectors.plan import Settings, turns
from benchmarks.vectors.stores import Running, running
from benchmarks.vectors.systems import SYSTEMS
from nearmesh.devmesh.samples import CHECKOUT
from nearmesh.errors import MeshError

# The slowest one takes in a few hundred rows a second, and then builds its index.
FILL_WITHIN_S, TUNE_WITHIN_S = 900.0, 900.0
# Calls that are under way when a measurement ends are waited for.
SEARCH_WITHIN_S = 120.0

Say = Callable[[str], None]


@dataclass
class Contest:
    """Everything that is found; `results` is its JSON."""

    settings: Settings
    say: Say
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    filled: list[Filled] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)

    def results(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "versions": self.versions,
            "skipped": self.skipped,
            "filled": [asdict(one) for one in self.filled],
            "cells": [asdict(one) for one in self.cells],
            "starts": [asdict(one) for one in self.starts],
        }

    async def run(self, scratch: Path) -> None:
        """A store that cannot be had, or fails, is named with why; the others go on."""
        self.say(f"{self.settings.shape.rows:,} vectors, and what is nearest to {self.settings.shape.queries:,}")
        corpus = await asyncio.to_thread(kept, self.settings.shape, scratch / "corpus")
        async with AsyncExitStack() as stack:
            up: dict[str, Running] = {}
            for name in self.settings.systems:
                try:
                    await asyncio.to_thread(self._environment, name)
                    self.say(f"{name}: takes all rows in")
                    (scratch / name).mkdir()
                    up[name] = await stack.enter_async_context(
                        running(SYSTEMS[name], self.settings, corpus, scratch / name)
                    )
                    self.filled.append(await self._fill(up[name]))
                except (MeshError, TimeoutError) as error:
                    self._skip(name, error)
                    up.pop(name, None)
            await self._search(up)
            await self._start(up)

    def _environment(self, name: str) -> None:
        if wanted := SYSTEMS[name].environment:
            make(ENVIRONMENTS[wanted])
            self.versions[name] = versions(ENVIRONMENTS[wanted])

    def _skip(self, name: str, error: Exception) -> None:
        # Where this checkout lies is nobody's business who reads the page.
        why = " ".join((str(error) or type(error).__name__).replace(f"{CHECKOUT}/", "").split())
        self.say(f"SKIPPED {name}: {why}")
        self.skipped.append({"system": name, "why": why})

    async def _fill(self, store: Running) -> Filled:
        filled = await store.ask("fill", FILL_WITHIN_S)
        rest_s = await store.rest(self.settings.rest_s)
        chosen = await store.ask("tune", TUNE_WITHIN_S)
        recall = [(await store.ask("recall", TUNE_WITHIN_S, filtered=filtered))["recall"] for filtered in (False, True)]
        took = times(filled["batch_ms"])
        return Filled(
            system=store.system.name,
            rows=self.settings.shape.rows,
            seconds=filled["seconds"],
            seen_s=filled["seen_s"],
            finished_s=filled["finished_s"],
            rest_s=rest_s,
            batch=filled["batch"],
            p50_ms=took["p50_ms"],
            p95_ms=took["p95_ms"],
            disk_bytes=store.disk_bytes,
            effort=chosen["plain"]["effort"],
            filtered_effort=chosen["filtered"]["effort"],
            recall=recall[0],
            filtered_recall=recall[1],
        )

    async def _search(self, up: dict[str, Running]) -> None:
        for number, callers, filtered, name in turns(self.settings, tuple(up)):
            if name not in up:
                continue
            try:
                self.cells.append(await self._cell(up[name], number, callers, filtered))
            except MeshError as error:
                self._skip(name, error)
                del up[name]

    async def _cell(self, store: Running, number: int, callers: int, filtered: bool) -> Cell:
        began_s, before_busy_s, before_used_s = time.monotonic(), busy_s(), store.used_s()
        found = await store.ask(
            "search", SEARCH_WITHIN_S, callers=callers, seconds=self.settings.seconds, filtered=filtered
        )
        passed_s = time.monotonic() - began_s
        others_s = (busy_s() - before_busy_s) - (store.used_s() - before_used_s)
        took = found["took_ms"]
        self.say(f"round {number}, {callers} callers{', filter' if filtered else ''}: {store.system.name} {len(took)}")
        return Cell(
            round=number,
            system=store.system.name,
            callers=callers,
            filtered=filtered,
            calls=len(took),
            elapsed_s=found["elapsed_s"],
            other_cores=max(0.0, others_s / passed_s),
            **times(took),
        )

    async def _start(self, up: dict[str, Running]) -> None:
        for number in range(1, self.settings.starts + 1):
            for killed in (False, True):
                for name, store in list(up.items()):
                    try:
                        found = await store.again(kill=killed)
                        await store.rest(self.settings.rest_s)
                    except (MeshError, TimeoutError) as error:
                        self._skip(name, error)
                        del up[name]
                        continue
                    how = "killed and started" if killed else "started"
                    self.say(f"{name} {how}: answers in {found['answered_s']:.2f} s")
                    self.starts.append(Start(round=number, system=name, killed=killed, **found))
