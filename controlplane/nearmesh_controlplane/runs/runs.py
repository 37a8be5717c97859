"""Every run: kept on disk, known here, changed by who is asked and by the leader's driver.

What a run is at is on disk before anything is done about it. Who changes one names the revision that he saw, so the
leader's step and a person's word, through whichever control plane, do not undo each other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from nearmesh.errors import NotFound, Unreachable
from nearmesh.rpc import Identity
from nearmesh.whole import whole
from nearmesh_controlplane.audit import Audit
from nearmesh_controlplane.database import Database
from nearmesh_controlplane.generation import Generation
from nearmesh_controlplane.runs import machine, store
from nearmesh_controlplane.runs.folder import Progress, RoundRecord
from nearmesh_controlplane.runs.run import Promotion, Run

log = logging.getLogger(__name__)

# Somebody else may have changed a run meanwhile: looked at again, so often at most.
TRIES = 5

Step = Callable[[Run], Run]


class Runs:
    """Reads from memory what goes on; every change is on disk before it is seen."""

    def __init__(
        self,
        db: Database,
        audit: Audit,
        *,
        name: str = "control-plane",
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`name` stands in the audit log for what this control plane does by itself."""
        self._db = db
        self._audit = audit
        self._self = Identity(name, "control-plane")
        self._wall = wall
        # Those who watch runs are woken by this, and nobody else.
        self.changes = Generation()
        self._runs: dict[str, Run] = {}
        self._rounds: dict[str, list[RoundRecord]] = {}
        self._progress: dict[str, Progress] = {}
        # Since this control plane began: rounds that it has taken over, and times that it took a run up again.
        self.rounds_taken, self.taken_up = 0, 0

    async def restore(self) -> None:
        """Reads the durable state: at the start, and when another control plane wrote some of it."""
        found = await self._db.run(store.read_all)
        active = [run.id for run in found if run.active]
        rounds = await self._db.run(store.rounds, active)
        for run in found:
            known = self._runs.get(run.id)
            # What is known here may be newer than what was read.
            if known is None or known.revision < run.revision:
                self._runs[run.id] = run
        self._rounds |= {id: max(records, self._rounds.get(id, []), key=len) for id, records in rounds.items()}
        for id in self._rounds.keys() - {run.id for run in self.active()}:
            del self._rounds[id]
        await self.restore_progress()

    async def restore_progress(self) -> None:
        """The rounds under way, as the leader wrote them down for others."""
        if self._db.shared:
            self._progress = {**self._progress, **await self._db.run(store.progress)}
        self.changes.bump()

    # What is asked

    def active(self) -> list[Run]:
        """Those that go on by themselves, in the order in which they were asked for."""
        return sorted((run for run in self._runs.values() if run.active), key=lambda run: (run.created_at_s, run.id))

    def counts(self) -> dict[str, int]:
        """By state, of those that are known here."""
        found: dict[str, int] = {}
        for run in self._runs.values():
            found[run.state] = found.get(run.state, 0) + 1
        return found

    async def get(self, id: str) -> Run:
        """Raises NotFound."""
        found = self._runs.get(id) or await self._db.run(store.read, id)
        if found is None:
            raise NotFound(f"no run {id!r}; `nearmesh run list` shows those that there are")
        return found

    async def newest(self, model: str, limit: int) -> list[Run]:
        return await self._db.run(store.newest, model, limit)

    async def rounds(self, id: str) -> list[RoundRecord]:
        """Those that have ended, in order."""
        known = self._rounds.get(id)
        return (await self._db.run(store.rounds, [id]))[id] if known is None else known

    async def rounds_of(self, ids: Iterable[str]) -> dict[str, list[RoundRecord]]:
        return await self._db.run(store.rounds, list(ids))

    async def arrays(self, id: str) -> dict[int, bytes]:
        """Files of parameters that are kept, by round."""
        return await self._db.run(store.arrays, id)

    async def app(self, id: str) -> bytes:
        return await self._db.run(store.app_of, id)

    def progress(self, id: str) -> Progress | None:
        """The round under way."""
        run = self._runs.get(id)
        return self._progress.get(id) if run is not None and run.state == "training" else None

    # What people change

    @whole
    async def start(self, run: Run, app: bytes, actor: Identity) -> Run:
        """The run, or that of the same idempotency key. Raises AlreadyExists where that was asked in other words."""
        found = await self._db.run(store.insert, run, app)
        if found.id == run.id:
            self._rounds[run.id] = []
            self._know(found)
            asked = run.asked
            detail = f"from {run.parent_version}, {asked.rounds} rounds, {asked.strategy}"
            await self._audit.record(actor, "run start", run.model, f"run {run.id}, {detail}")
        return found

    @whole
    async def stop(self, id: str, actor: Identity) -> Run:
        """Raises NotFound, InvalidInput."""
        after = await self._change(id, lambda run: machine.stop(run, self._wall()), leader=False)
        await self._audit.record(actor, "run stop", after.model, f"run {id}")
        return after

    @whole
    async def promote(self, id: str, promotion: Promotion, actor: Identity) -> Run:
        """Raises NotFound, InvalidInput."""
        before = await self.get(id)
        after = await self._change(id, lambda run: machine.promoted(run, str(actor), promotion), leader=False)
        if after is not before:
            await self._audit.record(actor, "run promote", after.model, f"run {id}")
        return after

    # What the leader changes

    @whole
    async def step(self, before: Run, step: Step) -> Run:
        """What the run is at after that step, which is not made where it is in another state by now.

        The leader's. Raises NotLeader.
        """
        id = before.id
        after = await self._change(id, lambda run: step(run) if run.state == before.state else run, leader=True)
        self.taken_up += max(0, after.resumed - before.resumed)
        if after.state != before.state:
            log.info("run id=%s model=%s is %s: %s", id, after.model, after.state, after.reason)
            if not after.active:
                await self._audit.record(self._self, f"run {after.state}", after.model, f"run {id}: {after.reason}")
        elif after.reason and after.reason != before.reason:
            log.info("run id=%s model=%s %s: %s", id, after.model, after.state, after.reason)
        return after

    @whole
    async def take_round(self, id: str, record: RoundRecord, content: bytes | None) -> None:
        """A round has ended. The leader's. Raises NotLeader."""
        if await self._db.run_as_leader(store.add_round, id, record, content):
            log.info("run id=%s round=%d ended sites=%d", id, record.number, len(record.sites))
            # Of a run whose rounds are not known here they are read when they are asked for.
            if id in self._rounds:
                self._rounds[id].append(record)
            self.rounds_taken += 1
            self.changes.bump()

    async def tell_progress(self, id: str, progress: Progress | None) -> None:
        """What the round under way is at. The leader's; nobody relies on it."""
        if progress is None or progress == self._progress.get(id):
            return
        self._progress[id] = progress
        self.changes.bump()
        if self._db.shared:
            await self._db.run_as_leader(store.write_progress, id, progress)

    async def _change(self, id: str, step: Step, *, leader: bool) -> Run:
        for _ in range(TRIES):
            run = await self.get(id)
            wanted = step(run)
            if wanted is run:
                return run
            run_one = self._db.run_as_leader if leader else self._db.run
            after: Run | None = await run_one(store.update, wanted)
            if after is not None:
                self._know(after)
                return after
            # Somebody else was faster; what they made of it counts.
            newer = await self._db.run(store.read, id)
            if newer is not None:
                self._know(newer)
        raise Unreachable(f"run {id} is being changed by others all the time; try again")

    def _know(self, run: Run) -> None:
        known = self._runs.get(run.id)
        # What was read meanwhile may be newer.
        if known is None or known.revision <= run.revision:
            self._runs[run.id] = run
        if not run.active:
            self._progress.pop(run.id, None)
            self._rounds.pop(run.id, None)
        self.changes.bump()
