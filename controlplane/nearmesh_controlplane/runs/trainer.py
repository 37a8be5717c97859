"""Has the engine make a run's rounds: begins them, takes over each that has ended, and begins anew what has died.

The engine's runs that this process began are known here alone. Whatever the database says is under way and is not
among them was begun by a process that is no more: it is taken up again from its last round.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from nearmesh.errors import ConfigError, InvalidInput, MeshError, NotFound, NotInstalled, PackageError
from nearmesh_controlplane.runs import machine, schedule
from nearmesh_controlplane.runs.desk import Desk
from nearmesh_controlplane.runs.engine import ENDED, Engine, EngineAway, EngineStatus
from nearmesh_controlplane.runs.folder import RoundRecord, RunFolder
from nearmesh_controlplane.runs.run import Run, new_pseudonym
from nearmesh_controlplane.runs.runs import Runs
from nearmesh_controlplane.runs.sites import Sites

log = logging.getLogger(__name__)

# Files are looked at each time. The engine, which has to do for every question, is asked how a run stands so often.
ASK_EVERY_S = 2.0
# Of the error that a server app ended with, so many characters stand in the run; and how such a line begins.
LAST_WORDS = 300
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b")


@dataclass(slots=True)
class _Attempt:
    """A run of the engine that this process began."""

    folder: RunFolder
    engine_run: str
    # By node, as they were made known to the engine.
    keys: dict[str, str] = field(default_factory=dict)
    held: str = ""
    status: EngineStatus = field(default_factory=lambda: EngineStatus(state="waiting"))
    asked_at: float = -math.inf
    away: str = ""


class Trainer:
    """Of every run that is in training."""

    def __init__(
        self,
        runs: Runs,
        desk: Desk,
        engine: Engine,
        sites: Sites,
        on_asked: Callable[[], object],
        wall: Callable[[], float] = time.time,
        *,
        ask_every_s: float = ASK_EVERY_S,
    ) -> None:
        """`on_asked` is called whenever other nodes are asked than before."""
        self._runs = runs
        self._desk = desk
        self._engine = engine
        self._sites = sites
        self._on_asked = on_asked
        self._wall = wall
        self._ask_every_s = ask_every_s
        self._attempts: dict[str, _Attempt] = {}

    def asks(self, node: str) -> bool:
        """Whether the node is asked to take part in anything now.

        Whoever was asked when this control plane came to a run stays asked until it has begun: its SuperNode need not
        end for that moment.
        """
        training = [run for run in self._runs.active() if run.state == "training"]
        return any(self._asks(run, node) for run in training)

    def _asks(self, run: Run, node: str) -> bool:
        attempt = self._attempts.get(run.id)
        return (run.begun and node in run.nodes) if attempt is None else node in attempt.keys

    async def go_on(self, run: Run) -> None:
        """One look at a run in training. Raises MeshError where something is away."""
        attempt = self._attempts.get(run.id)
        try:
            if attempt is not None and attempt.engine_run == run.engine_run:
                await self._look(run, attempt)
            elif run.stopping:
                await self._runs.step(run, lambda run: machine.stopped(run, self._wall()))
            elif self._wall() >= run.again_at_s:
                await self.leave(run.id)
                await self._begin(run)
        except OSError as error:
            words = f"the run's folder cannot be used: {error}; look at the disk that `data` is on"
            await self._runs.step(run, lambda run: machine.put_off(run, words, self._wall()))

    # Beginning

    async def _begin(self, run: Run) -> None:
        try:
            await self._engine.prepare()
        except EngineAway as error:
            words = f"{machine.AWAY}: {error.message}"
            await self._runs.step(run, lambda run: machine.put_off(run, words, self._wall()))
            return
        except (NotInstalled, ConfigError) as error:
            await self._fail(run, error)
            return
        try:
            await self._attempt(run)
        except EngineAway as error:
            words = f"{machine.AWAY}: {error.message}"
            await self._runs.step(run, lambda run: machine.died(run, words, self._wall()))
        except NotFound as error:
            # Of a version that this control plane is still copying from another one.
            words = error.message
            await self._runs.step(run, lambda run: machine.put_off(run, words, self._wall()))
        except (InvalidInput, PackageError) as error:
            await self._fail(run, error)

    async def _fail(self, run: Run, error: MeshError) -> None:
        await self._runs.step(run, lambda run: machine.failed(run, error.message, self._wall()))
        await self._rest()

    async def _attempt(self, run: Run) -> None:
        if run.engine_run:
            # Of an engine that outlived the control plane.
            await self._engine.stop(run.engine_run)
        rounds, arrays = await self._runs.rounds(run.id), await self._runs.arrays(run.id)
        await self._desk.lay_out(run, rounds, arrays, await self._runs.app(run.id) if run.own_app else b"")
        run = await self._runs.step(run, machine.attempted)
        if run.state != "training":
            return
        attempt = _Attempt(self._desk.folder(run), "")
        await self._take_rounds(run, attempt)
        run = await self._ask(run, attempt)
        attempt.engine_run = await self._engine.start(
            self._desk.app(run),
            self._desk.run_config(run),
            # The mesh's own app knows its folder.
            attempt.folder.path if run.own_app else None,
        )
        self._attempts[run.id] = attempt
        begun = attempt.engine_run
        run = await self._runs.step(run, lambda run: machine.begun(run, begun))
        log.info("run id=%s engine_run=%s", run.id, begun)
        if run.state != "training":
            await self.leave(run.id)

    async def _ask(self, run: Run, attempt: _Attempt) -> Run:
        """Makes known to the engine whoever takes part, those that came later, too."""
        new = [node for node in self._sites.ready(run) if node not in run.nodes]
        if new:
            names = {node: new_pseudonym() for node in new}
            run = await self._runs.step(run, lambda run: machine.joined(run, names))
        keys = self._sites.keys(run)
        if keys != attempt.keys:
            ids = await self._registered(keys)
            sites = {id: self._sites.info(run, node) for node, id in ids.items()}
            await asyncio.to_thread(attempt.folder.write_sites, sites)
            attempt.keys = keys
            self._on_asked()
        return run

    async def _registered(self, keys: Mapping[str, str]) -> dict[str, int]:
        """Ids of the nodes whose keys the engine takes."""
        try:
            return await self._engine.register(keys)
        except InvalidInput:
            found: dict[str, int] = {}
            for node, key in keys.items():
                try:
                    found |= await self._engine.register({node: key})
                except InvalidInput as error:
                    log.warning("node=%s takes no part: %s", node, error.message)
            return found

    # While it runs

    async def _look(self, run: Run, attempt: _Attempt) -> None:
        # In this order: what has ended has written all that it will, and its last round before its end.
        status, folder = await self._status(attempt), attempt.folder
        progress, end, judged = await asyncio.to_thread(lambda: (folder.progress(), folder.end(), folder.judged()))
        fresh = await self._take_rounds(run, attempt)
        try:
            run = await self._ask(run, attempt)
        except EngineAway as error:
            attempt.away = f"{machine.AWAY}: {error.message}"
        rounds = await self._runs.rounds(run.id)
        await self._runs.tell_progress(run.id, progress)
        closed = self.closed(run, attempt.keys)
        look = machine.Training(
            engine=status,
            away=attempt.away,
            finished=_finished(rounds),
            fresh=fresh,
            resting=progress is None or progress.phase == "waiting",
            closed=closed if attempt.held else "",
            end=end,
            judged=judged,
            last_words=await self._last_words(attempt) if status.state in ENDED and not end else "",
        )
        await self._hold(attempt, "it is being stopped" if run.stopping else closed)
        after = await self._runs.step(run, lambda run: machine.trained(run, look, self._wall()))
        if after.state != "training" or after.engine_run != attempt.engine_run:
            await self.leave(run.id)

    async def _status(self, attempt: _Attempt) -> EngineStatus:
        """As the engine said last."""
        now = time.monotonic()
        if now - attempt.asked_at < self._ask_every_s and not await asyncio.to_thread(attempt.folder.end):
            return attempt.status
        try:
            attempt.status, attempt.asked_at, attempt.away = await self._engine.status(attempt.engine_run), now, ""
        except (EngineAway, InvalidInput) as error:
            # Its server app may go on all the same, and a SuperLink that died is started again.
            attempt.away = f"{machine.AWAY}: {error.message}"
        return attempt.status

    async def _take_rounds(self, run: Run, attempt: _Attempt) -> bool:
        """Into the database, each that has ended; whether there were any."""
        number = first = _finished(await self._runs.rounds(run.id)) + 1
        if not first and not await asyncio.to_thread(attempt.folder.round, 0):
            # An app of the data team's own need not judge the parent.
            number = first = 1
        while record := await asyncio.to_thread(attempt.folder.round, number):
            content = await asyncio.to_thread(attempt.folder.content, number)
            await self._runs.take_round(run.id, record, content)
            number += 1
        return number > first

    def closed(self, run: Run, nodes: Collection[str]) -> str:
        """Why no round of the run may begin at this time; empty: it may."""
        when = run.asked.when
        if not (when.window or when.idle_below or when.usd_per_hour_below):
            return ""
        rule = schedule.parse(when.window, when.idle_below, when.usd_per_hour_below)
        wait = schedule.wait(rule, self._sites.now(nodes), self._wall())
        return wait.why if wait else ""

    async def _hold(self, attempt: _Attempt, why: str) -> None:
        """Has no further round begin, or lets them; who is told so may be beginning one this moment, which ends."""
        if bool(why) == bool(attempt.held):
            return
        await asyncio.to_thread(attempt.folder.hold, why) if why else await asyncio.to_thread(attempt.folder.release)
        attempt.held = why

    async def _last_words(self, attempt: _Attempt) -> str:
        """The error that the server app ended with; empty where it told of none."""
        try:
            lines = (await self._engine.log(attempt.engine_run)).splitlines()
        except EngineAway:
            return ""
        return next((line[:LAST_WORDS] for line in reversed(lines) if _ERROR.match(line)), "")

    # The end

    async def leave(self, id: str) -> None:
        """The run has left training, or begins anew."""
        attempt = self._attempts.pop(id, None)
        if attempt is None:
            return
        self._on_asked()
        try:
            await self._engine.stop(attempt.engine_run)
        except (EngineAway, InvalidInput) as error:
            log.warning("engine_run=%s was not ended: %s", attempt.engine_run, error.message)
        await self._rest()
        await asyncio.to_thread(self._desk.tidy, {run.id for run in self._runs.active()})

    async def _rest(self) -> None:
        """The engine may rest when no run is in training, also none that is just about to begin."""
        if not self._attempts and not any(run.state == "training" for run in self._runs.active()):
            await self._engine.release()

    async def leave_all(self) -> None:
        """This control plane does not lead any more."""
        for id in list(self._attempts):
            await self.leave(id)
        await self._engine.release()


def _finished(rounds: Sequence[RoundRecord]) -> int:
    """Number of the last round that has ended; -1: none has."""
    return rounds[-1].number if rounds else -1
