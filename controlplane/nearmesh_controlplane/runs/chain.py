"""Takes a trained model into serving: the gate, its variants, the catalog, a rollout.

Each part is found done where it has been done, so that a control plane which begins in the middle does nothing twice:
a version is known by its name, which is the run's alone (`Candidates` looks), and a rollout by the version's digest.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable

from nearmesh.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidInput,
    MeshError,
    NotFound,
    NotLeader,
    NotReady,
    Overloaded,
    PackageError,
    StorageFull,
    Unreachable,
)
from nearmesh.rpc import Identity
from nearmesh_controlplane.catalog.catalog import Catalog
from nearmesh_controlplane.rollouts.calls import Agreement
from nearmesh_controlplane.rollouts.messages import MIRROR_SHARE
from nearmesh_controlplane.rollouts.rollout import STEPS, Limits, Plan, Rollout
from nearmesh_controlplane.rollouts.rollouts import Rollouts
from nearmesh_controlplane.rollouts.scope import Scope
from nearmesh_controlplane.runs import gate, machine
from nearmesh_controlplane.runs.candidates import Built, Candidates, Parent
from nearmesh_controlplane.runs.candidates import Limits as GateLimits
from nearmesh_controlplane.runs.folder import STATE, Arrays, from_npz
from nearmesh_controlplane.runs.lineage import lineage, told
from nearmesh_controlplane.runs.run import Promotion, Run
from nearmesh_controlplane.runs.runs import Runs

log = logging.getLogger(__name__)

# How long each step of the canary is watched, unless somebody says otherwise. Shorter than that of a version of which
# nothing is known: the sites have judged this one.
STEP_S = 10.0
# Nobody's fault, and over some time. A version that is not found is still being copied from another control plane: none
# is ever removed.
PASSING = (Unreachable, NotReady, NotFound, Overloaded, DeadlineExceeded, StorageFull)


class Chain:
    """Of every run that is between the gate and its end."""

    def __init__(
        self,
        runs: Runs,
        candidates: Candidates,
        catalog: Catalog,
        rollouts: Rollouts,
        agreement: Agreement = lambda version: 0.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`agreement` is what a version's package says of how many of its answers have to agree with its parent's."""
        self._runs = runs
        self._agreement = agreement
        self._candidates = candidates
        self._catalog = catalog
        self._rollouts = rollouts
        self._wall = wall
        # Versions that are made and not yet published; made again where they are lost.
        self._built: dict[str, Built] = {}

    async def go_on(self, run: Run) -> None:
        """One step of a run that was promoted. Raises NotLeader."""
        if self._wall() < run.again_at_s and not run.stopping:
            return
        try:
            await self._step(run)
        except NotLeader:
            raise
        except (*PASSING, OSError) as error:
            words = error.message if isinstance(error, MeshError) else f"files of this machine cannot be used: {error}"
            await self._runs.step(run, lambda run: machine.put_off(run, words, self._wall()))
        except PackageError as error:
            words = error.message
            await self._runs.step(run, lambda run: machine.refused(run, words, self._wall()))
        except MeshError as error:
            words = error.message
            await self._runs.step(run, lambda run: machine.failed(run, words, self._wall()))

    async def _step(self, run: Run) -> None:
        if run.state == "checking":
            await self._check(run)
        elif run.state == "publishing":
            await self._publish(run)
        elif run.rollout:
            await self._watch(run)
        else:
            await self._roll_out(run)

    def forget(self) -> None:
        """This control plane does not lead any more."""
        self._built.clear()

    # The gate

    async def _check(self, run: Run) -> None:
        if run.stopping:
            await self._runs.step(run, lambda run: machine.stopped(run, self._wall()))
            return
        parent = await self._candidates.parent(run.model, run.parent_version)
        arrays = await self._arrays(run)
        if run.checks is None:
            rounds = await self._runs.rounds(run.id)
            evidence = gate.Evidence(
                parent=parent.arrays,
                candidate=arrays,
                before=next((record for record in rounds if record.number == 0), None),
                judged=run.judged or (),
                metric=parent.metric,
                tolerance=parent.tolerance,
                min_sites=run.asked.min_sites,
            )
            checks = await asyncio.to_thread(gate.checks, evidence, limits_of(parent.limits, run.promotion))
            run = await self._runs.step(run, lambda run: machine.checked(run, checks, self._wall()))
        if run.state == "checking":
            built = await self._build(run, parent, arrays)
            if built is not None:
                await self._runs.step(run, lambda run: machine.built(run, built.checks, self._wall()))

    async def _build(self, run: Run, parent: Parent, arrays: Arrays) -> Built | None:
        """None: it has been tried too often."""
        run = await self._runs.step(run, lambda run: machine.tried(run, self._wall()))
        if run.ended:
            return None
        made_from = lineage(run, await self._runs.rounds(run.id), told(run.asked.settings, parent.settings))
        found = self._built[run.id] = await self._candidates.build(run, arrays, made_from)
        return found

    async def _arrays(self, run: Run) -> Arrays:
        """Those after the last round. Raises PackageError."""
        kept = await self._runs.arrays(run.id)
        if not kept:
            raise PackageError(f"the parameters of run {run.name} are not kept any more; run it again")
        found = await asyncio.to_thread(from_npz, kept[max(kept)])
        return {name: array for name, array in found.items() if not name.startswith(STATE)}

    # The catalog

    async def _publish(self, run: Run) -> None:
        built = self._built.get(run.id)
        if built is None:
            parent = await self._candidates.parent(run.model, run.parent_version)
            built = await self._build(run, parent, await self._arrays(run))
        if built is None:
            return
        found = await self._candidates.publish(built, run.promoted_by)
        version, digest = found.version, found.digest
        await self._runs.step(run, lambda run: machine.published(run, version, digest, self._wall()))
        self._built.pop(run.id, None)

    # The rollout

    async def _roll_out(self, run: Run) -> None:
        rollout = await self._begun(run)
        if rollout is None and run.stopping:
            await self._runs.step(run, lambda run: machine.published(run, run.version, run.digest, self._wall()))
            return
        if rollout is None:
            version = self._catalog.version(run.model, run.version)
            try:
                rollout = await self._rollouts.start(
                    version,
                    self._scope(run),
                    plan_of(run.promotion, await asyncio.to_thread(self._agreement, version)),
                    _identity(run.promoted_by),
                )
            except (AlreadyExists, NotFound) as error:
                words = error.message
                await self._runs.step(run, lambda run: machine.put_off(run, words, self._wall()))
                return
        number = rollout.id
        await self._runs.step(run, lambda run: dataclasses.replace(run, rollout=number, reason=""))

    async def _begun(self, run: Run) -> Rollout | None:
        """The rollout of its version, whoever began it: this process, one before it, or an operator."""
        await self._rollouts.begun(run.model)
        return next((one for one in self._rollouts.all(run.model) if one.digest == run.digest), None)

    def _scope(self, run: Run) -> Scope:
        """Where the model is wanted now; everywhere if it is not."""
        deployments = self._catalog.deployments(run.model)
        return deployments[0].scope if deployments else Scope()

    async def _watch(self, run: Run) -> None:
        rollout = self._rollouts.get(run.model, run.rollout)
        if run.stopping and rollout.state in ("running", "paused"):
            try:
                rollout = await self._rollouts.change(run.model, "abort", _identity(run.promoted_by))
            except (NotFound, InvalidInput) as error:
                log.info("run id=%s rollout=%d has just ended: %s", run.id, run.rollout, error.message)
        await self._runs.step(run, lambda run: machine.rolled_out(run, rollout))


def limits_of(package: GateLimits, promotion: Promotion) -> GateLimits:
    """What was said with the promotion counts before what the package says."""
    loss, gain = promotion.largest_site_loss, promotion.smallest_mean_gain
    return GateLimits(
        largest_site_loss=package.largest_site_loss if loss is None else loss,
        smallest_mean_gain=package.smallest_mean_gain if gain is None else gain,
        largest_change=package.largest_change,
    )


def plan_of(promotion: Promotion, agreement: float = 0.0) -> Plan:
    """A canary. Raises InvalidInput.

    A model that was trained is meant to answer otherwise than its parent: how much so is for its package to say, and
    where that says nothing, answers are not compared.
    """
    usual = Plan(strategy="canary", steps=STEPS)
    return Plan(
        strategy="canary",
        steps=promotion.steps or usual.steps,
        step_s=promotion.step_s or STEP_S,
        step_requests=promotion.step_requests or usual.step_requests,
        mirror_share=MIRROR_SHARE if agreement else 0.0,
        limits=Limits(agreement=agreement),
    )


def _identity(actor: str) -> Identity:
    role, _, name = actor.partition("/")
    return Identity(name, role)
