"""How a run goes on: from what it is at and what is known of it, what it is at next. Pure.

    waiting -> training -> trained             rounds; back to waiting when its schedule says so
    trained -> checking -> publishing -> rolling out -> served      once somebody promotes it, or by itself
    checking, publishing -> refused            by the gate
    rolling out -> rolled back                 by its rollout
    anything that has not ended -> stopped, failed

What is to be done outside - a run of the engine, a version, a rollout - is named here first and done then, and all of
it may be done again: so a control plane that begins in the middle goes on from what is on disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nearmesh.errors import InvalidInput
from nearmesh_controlplane.rollouts.rollout import Rollout
from nearmesh_controlplane.runs import gate
from nearmesh_controlplane.runs.engine import ENDED as ENGINE_ENDED
from nearmesh_controlplane.runs.engine import EngineStatus
from nearmesh_controlplane.runs.folder import End, Judged
from nearmesh_controlplane.runs.run import Check, Promotion, Run, State

# Attempts in a row that got nothing done. More than a machine needs that is restarted again and again.
MAX_TRIES = 8
# The first attempts follow at once, since whatever died may be back already.
AT_ONCE, LONGEST_DELAY_S = 2, 30.0
# How a reason begins while nobody knows how the engine's run stands.
AWAY = "the engine is away"
# What is away for a while, such as the registry or another rollout, is asked for again after so long.
ASK_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What is known of a run that has not begun its rounds, or stands still between two of them."""

    # Nodes that would take part now.
    ready: Collection[str]
    # Another run that has to end first; empty: none.
    busy: str = ""
    # Why no round may begin at this time; empty: it may.
    closed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is known of a run that this control plane has begun at the engine."""

    engine: EngineStatus
    # Number of the last round that has ended; -1: not even the parent was judged.
    finished: int
    # Something got done since the last look: a round ended.
    fresh: bool = False
    # No round is under way.
    resting: bool = False
    # Why no further round may begin at this time; the server app has been told.
    closed: str = ""
    end: End | None = None
    judged: Sequence[Judged] | None = None
    # Why the engine says nothing at present.
    away: str = ""
    # The last words of the server app, where it went without having ended.
    last_words: str = ""


# Rounds


def begins_from(run: Run, version: str, digest: str) -> Run:
    """What is wanted of the model now that it begins, where no version was named: the run before it may have ended in
    another one."""
    if run.asked.version or run.parent_digest == digest:
        return run
    return dataclasses.replace(run, parent_version=version, parent_digest=digest)


def waited(run: Run, look: Waiting) -> Run:
    """Begins its rounds, or says why not; the same object when nothing is different."""
    few = len(look.ready) < run.asked.min_sites
    if look.busy:
        why = f"waits for run {look.busy}, which is at work"
    elif few:
        there = f": {', '.join(sorted(look.ready))}" if look.ready else ""
        lets = " and let apps of data teams' own run" if run.own_app else ""
        why = f"{len(look.ready)} of {run.asked.min_sites} sites are there that have data for {run.model}{lets}{there}"
    elif look.closed:
        why = look.closed
    else:
        return dataclasses.replace(run, state="training", reason="", tries=0, again_at_s=0.0)
    return _because(run, why)


def joined(run: Run, pseudonyms: Mapping[str, str]) -> Run:
    """Asks further nodes; those that are asked already keep what they are called."""
    nodes = {**pseudonyms, **run.nodes}
    return run if nodes == run.nodes else dataclasses.replace(run, nodes=nodes)


def attempted(run: Run) -> Run:
    """Right before a run of the engine is begun: on disk first, so that a beginning which kills the control plane is
    counted. A control plane that was killed while one went on is not its fault."""
    tries = run.tries if run.engine_run else run.tries + 1
    return dataclasses.replace(
        run, engine_run="", begun=True, tries=tries, resumed=run.resumed + (1 if run.begun else 0)
    )


def begun(run: Run, engine_run: str) -> Run:
    """The engine has it."""
    return dataclasses.replace(run, engine_run=engine_run)


def trained(run: Run, look: Training, now_s: float) -> Run:
    """What a run under way is at now; the same object when nothing is different."""
    if _is_done(run, look):
        return _trained(run, look, now_s)
    if run.stopping == "now" or (run.stopping and (look.fresh or look.resting)):
        return stopped(run, now_s)
    if look.fresh and run.tries:
        # Something got done, so whatever died before that is forgiven.
        run = dataclasses.replace(run, tries=0, reason="")
    if look.end is not None and look.end.reason:
        return failed(run, look.end.reason, now_s)
    if look.engine.state in ENGINE_ENDED:
        return died(run, look.last_words or look.engine.detail or f"its Flower run is {look.engine.state}", now_s)
    if look.closed and look.resting and look.finished < run.asked.rounds:
        return dataclasses.replace(run, state="waiting", reason=look.closed, engine_run="", begun=False)
    if look.away or run.reason.startswith(AWAY):
        return _because(run, look.away)
    return run


def died(run: Run, why: str, now_s: float) -> Run:
    """Its run of the engine is no more: another one is begun, unless that has been of no use for long."""
    if run.tries >= MAX_TRIES:
        return failed(run, f"{run.tries} attempts in a row ended before a round had; the last one: {why}", now_s)
    delay_s = 0.0 if run.tries <= AT_ONCE else min(LONGEST_DELAY_S, 2.0 ** (run.tries - AT_ONCE))
    return dataclasses.replace(run, engine_run="", reason=f"is taken up again: {why}", again_at_s=now_s + delay_s)


def _is_done(run: Run, look: Training) -> bool:
    if run.own_app:
        return look.engine.state == "finished"
    return look.judged is not None and look.end is not None and not look.end.reason


def _trained(run: Run, look: Training, now_s: float) -> Run:
    found = dataclasses.replace(
        run,
        state="trained",
        reason="",
        tries=0,
        begun=False,
        again_at_s=0.0,
        judged=None if look.judged is None else tuple(look.judged),
        ended_at_s=now_s,
    )
    if run.stopping:
        return stopped(found, now_s)
    return _checking(found) if run.promoted_by else found


# From a trained model to a served one


def _checking(run: Run) -> Run:
    return dataclasses.replace(run, state="checking", reason="", checks=None, ended_at_s=0.0, tries=0, again_at_s=0.0)


def tried(run: Run, now_s: float) -> Run:
    """Right before something that may kill the control plane, such as making variants of a large model."""
    if run.tries >= MAX_TRIES:
        return failed(
            run, f"given up after {run.tries} attempts: {run.reason or 'each ended the control plane'}", now_s
        )
    return dataclasses.replace(run, tries=run.tries + 1)


def checked(run: Run, checks: Sequence[Check], now_s: float) -> Run:
    """The gate has looked, first at the numbers, then at each variant as well."""
    found = dataclasses.replace(run, checks=tuple(checks))
    words = gate.said(checks)
    return _ended(found, "refused", words, now_s) if words else found


def built(run: Run, checks: Sequence[Check], now_s: float) -> Run:
    """Every variant is made and was judged."""
    found = checked(run, (*(run.checks or ()), *checks), now_s)
    if found.ended:
        return found
    if run.stopping:
        return stopped(found, now_s)
    return dataclasses.replace(found, state="publishing", reason="", tries=0, again_at_s=0.0)


def published(run: Run, version: str, digest: str, now_s: float) -> Run:
    found = dataclasses.replace(run, version=version, digest=digest)
    if run.stopping:
        return _ended(found, "stopped", f"{run.model}@{version} is published, and was not rolled out", now_s)
    return dataclasses.replace(found, state="rolling out", reason="", tries=0, again_at_s=0.0)


def rolled_out(run: Run, rollout: Rollout) -> Run:
    """What its rollout has come to; the same object when it has come to nothing yet."""
    if not rollout.ended:
        return run
    if rollout.state == "done":
        return _ended(run, "served", rollout.reason, rollout.ended_at_s)
    words = "its rollout failed"
    if run.stopping:
        words = "its rollout was taken back"
    elif rollout.state == "aborted":
        words = "its rollout was ended"
    why = f"{words}: {rollout.reason}" if rollout.reason else words
    return _ended(run, "stopped" if run.stopping else "rolled back", why, rollout.ended_at_s)


def put_off(run: Run, why: str, now_s: float) -> Run:
    """What it needs is away, which is nobody's fault: it is asked for again and again."""
    return dataclasses.replace(run, reason=why, tries=max(0, run.tries - 1), again_at_s=now_s + ASK_AGAIN_S)


def refused(run: Run, why: str, now_s: float) -> Run:
    return _ended(run, "refused", why, now_s)


def failed(run: Run, why: str, now_s: float) -> Run:
    return _ended(run, "failed", why, now_s)


def stopped(run: Run, now_s: float) -> Run:
    return _ended(run, "stopped", "stopped by request", now_s)


# What people ask


def stop(run: Run, now_s: float) -> Run:
    """After the round under way; asked for again, at once. Raises InvalidInput."""
    if run.ended:
        raise InvalidInput(f"run {run.name} is {run.state} already")
    if run.state in ("waiting", "trained"):
        return stopped(run, now_s)
    soft = run.state == "training" and not run.stopping
    return dataclasses.replace(run, stopping="round" if soft else "now")


def promoted(run: Run, by: str, promotion: Promotion) -> Run:
    """Again is no mistake. Raises InvalidInput where there is nothing to promote."""
    if run.promoted_by and (run.at_work or run.state == "served") and run.state != "training":
        return run
    if run.own_app:
        raise InvalidInput(
            f"run {run.name} is of an app of your own, which alone knows what its model is: publish it with "
            "`nearmesh model publish`"
        )
    if run.state not in ("trained", "refused"):
        hint = f"; `nearmesh model deploy {run.model} {run.version}` rolls it out" if run.version else ""
        raise InvalidInput(f"run {run.name} is {run.state}; one that is trained can be promoted{hint}")
    if run.judged is None:
        raise InvalidInput(f"run {run.name} was refused before the sites had judged its model")
    return _checking(dataclasses.replace(run, promoted_by=by, promotion=promotion))


def _because(run: Run, why: str) -> Run:
    return run if run.reason == why else dataclasses.replace(run, reason=why)


def _ended(run: Run, state: State, why: str, now_s: float) -> Run:
    return dataclasses.replace(run, state=state, reason=why, ended_at_s=now_s)
