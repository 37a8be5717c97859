"""A federated run in words: what it is at, what became of each round, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nearmesh.cli import run_records as records
from nearmesh.cli.output import NOTHING
from nearmesh.v1 import run_pb2


def headline(found: run_pb2.Run) -> str:
    """What it is at, in one line."""
    return f"run {found.id} of {found.model}@{found.parent_version}: {_at(found)}"


def _at(found: run_pb2.Run) -> str:
    why = f" ({found.reason})" if found.reason else ""
    if found.state == run_pb2.RUN_STATE_TRAINING:
        return f"{_training(found)}{why}"
    if found.state == run_pb2.RUN_STATE_CHECKING:
        return f"the gate looks at what the rounds made{why}"
    if found.state == run_pb2.RUN_STATE_PUBLISHING:
        return f"publishing {found.version or 'the new version'}{why}"
    if found.state == run_pb2.RUN_STATE_ROLLING_OUT:
        return f"rolling out {found.model}@{found.version}{why}"
    return f"{records.state(found)}{f': {found.reason}' if found.reason else ''}"


def _training(found: run_pb2.Run) -> str:
    progress = found.progress
    if not found.HasField("progress"):
        return f"starting, {len(counted(found))} of {found.asked.rounds} rounds done"
    rounds = found.asked.rounds
    number = f"round {progress.number} of {rounds}" if progress.number else "the parent, as it was"
    if progress.number > rounds:
        return f"its {how_many(rounds)} have ended, and the app ends"
    if any(one.number == progress.number for one in found.rounds):
        # Of a round that has ended nothing is under way; after the last one the sites are shown what came out.
        judging = progress.phase == "evaluating" and progress.number == rounds and not found.own_app
        ended = f"{number} has ended" if progress.number else "the sites have judged the parent"
        return f"the sites judge what came out: {_sites(progress, 'answered')}" if judging else ended
    if progress.phase == "waiting":
        return f"{number}, waiting for sites: {_sites(progress, 'there')}"
    return f"{number}, {progress.phase}: {_sites(progress, 'answered')}"


def _sites(progress: run_pb2.RoundProgress, how: str) -> str:
    missing = f", missing {', '.join(progress.missing)}" if progress.missing else ""
    return f"{len(progress.answered)} of {len(progress.answered) + len(progress.missing)} {how}{missing}"


def counted(found: run_pb2.Run) -> list[run_pb2.Round]:
    """The rounds that ended, without the parent's own."""
    return [one for one in found.rounds if one.number]


def metric_of(found: run_pb2.Run) -> str:
    """The figure to show: the one that is judged, else the first that an app of the data team's own tells."""
    if found.metric:
        return found.metric
    named = (name for one in reversed(found.rounds) for name in sorted(one.metrics or one.train_metrics))
    return next(named, "")


def value_of(found: run_pb2.Run, part: run_pb2.Round | run_pb2.SiteRound) -> float | None:
    """The figure of a round, or of a site in it; None: it has told none."""
    name = metric_of(found)
    if name in part.metrics:
        return part.metrics[name]
    # An app of the data team's own may tell figures of training alone; those of a recipe are another thing.
    return None if found.metric else part.train_metrics.get(name)


def figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def round_line(found: run_pb2.Run, one: run_pb2.Round) -> str:
    """What became of a round, in one line."""
    metric = metric_of(found)
    parent = f"{found.model}@{found.parent_version} as it was"
    name = f"round {one.number} of {found.asked.rounds}" if one.number else parent
    parts = [f"{name}, {one.ended_at_s - one.began_at_s:.1f} s"]
    if metric:
        parts.append(f"{metric} {figure(value_of(found, one))}")
    sites = [f"{site.node} {cell(found, site)}" for site in one.sites]
    parts.append(f"({', '.join(sites)})" if sites else "")
    late = f"{one.late} late answer{'s' if one.late != 1 else ''} dropped" if one.late else ""
    return "; ".join(part for part in (" ".join(filter(None, parts)), late) if part)


def cell(found: run_pb2.Run, site: run_pb2.SiteRound) -> str:
    """A site's part in a round, in a word or two."""
    if site.answer != records.COUNTED:
        return records.answer(site)
    words = [figure(value_of(found, site))]
    words += ["shortened"] if site.clipped else []
    words += ["suspect"] if site.suspect else []
    return " ".join(words)


def troubles(found: run_pb2.Run) -> Iterator[str]:
    """Why sites did not count, and who stands out."""
    for one in found.rounds:
        for site in one.sites:
            if site.answer != records.COUNTED and site.detail:
                yield f"round {one.number}, {site.node} {records.answer(site)}: {site.detail}"
            elif site.suspect:
                yield f"round {one.number}, {site.node} is suspect{f': {site.detail}' if site.detail else ''}"


def checks(gate: run_pb2.GateResult) -> Iterator[str]:
    for check in gate.checks:
        how = "passed" if check.passed else "REFUSED"
        yield f"gate, {check.name}: {how}{f', {check.detail}' if check.detail else ''}"


def verdict(found: run_pb2.Run) -> tuple[bool, str]:
    """Whether it went as it was asked to, and the last words about it."""
    reason = f": {found.reason}" if found.reason else ""
    name, stays = f"run {found.id}", f"{found.model}@{found.parent_version} serves as it did"
    if found.state == run_pb2.RUN_STATE_SERVED:
        return True, f"{found.model}@{found.version} is served: {_gained(found)}{reason}"
    if found.state == run_pb2.RUN_STATE_TRAINED:
        return _trained(found, reason)
    if found.state == run_pb2.RUN_STATE_REFUSED:
        return False, f"{name} is refused by the gate{reason}; {stays}"
    if found.state == run_pb2.RUN_STATE_ROLLED_BACK:
        return False, f"{name} was rolled out as {found.model}@{found.version} and taken back{reason}; {stays}"
    done = how_many(len(counted(found)))
    if found.state == run_pb2.RUN_STATE_STOPPED:
        return False, f"{name} was stopped after {done}{reason}"
    return False, f"{name} {records.state(found)} after {done}{reason}"


def _trained(found: run_pb2.Run, reason: str) -> tuple[bool, str]:
    if found.own_app:
        return True, f"run {found.id} has ended: {_gained(found)}{reason}"
    further = f"`nearmesh run promote {found.id}` takes it through the gate into serving"
    return True, f"run {found.id} is trained: {_gained(found)}{reason}; {further}"


def _gained(found: run_pb2.Run) -> str:
    rounds, metric = counted(found), metric_of(found)
    words = [how_many(len(rounds))]
    if metric and rounds:
        words.append(f"{metric} {figure(value_of(found, rounds[-1]))}")
        before = next((value_of(found, one) for one in found.rounds if not one.number), None)
        if before is not None:
            words.append(f"{found.parent_version} has {figure(before)}")
    if found.epsilon:
        words.append(f"epsilon {found.epsilon:.2f} at delta {found.delta:g}")
    if found.ended_at_s:
        words.append(f"{found.ended_at_s - found.created_at_s:.0f} s")
    return ", ".join(words)


def how_many(count: int) -> str:
    """Rounds, as one says it."""
    return "1 round" if count == 1 else f"{count} rounds"


def nodes_of(rounds: Iterable[run_pb2.Round]) -> list[str]:
    """Every node that was asked, as they came."""
    return list(dict.fromkeys(site.node for one in rounds for site in one.sites))
