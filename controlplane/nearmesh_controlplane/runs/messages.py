"""Runs as the contract has them, and what a request asks for, checked."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from nearmesh import strategies
from nearmesh.errors import InvalidInput
from nearmesh.v1 import run_pb2 as pb
from nearmesh_controlplane.runs import folder, schedule
from nearmesh_controlplane.runs.chain import plan_of
from nearmesh_controlplane.runs.folder import Progress, RoundRecord, SiteRecord
from nearmesh_controlplane.runs.run import Asked, Privacy, Promotion, Run, State, When

MAX_ROUNDS = 10_000
MAX_SITES = 1_000
MAX_SETTINGS = 200
MAX_SETTING_CHARACTERS = 2_000
MAX_KEY_CHARACTERS = 200
MIN_SITES, ROUND_TIMEOUT_S, DELTA = 2, 120.0, 1e-5
MAX_ROUND_TIMEOUT_S = 7 * 86400.0

_STATES: dict[State, pb.RunState] = {
    "waiting": pb.RUN_STATE_WAITING,
    "training": pb.RUN_STATE_TRAINING,
    "trained": pb.RUN_STATE_TRAINED,
    "checking": pb.RUN_STATE_CHECKING,
    "publishing": pb.RUN_STATE_PUBLISHING,
    "rolling out": pb.RUN_STATE_ROLLING_OUT,
    "served": pb.RUN_STATE_SERVED,
    "refused": pb.RUN_STATE_REFUSED,
    "rolled back": pb.RUN_STATE_ROLLED_BACK,
    "stopped": pb.RUN_STATE_STOPPED,
    "failed": pb.RUN_STATE_FAILED,
}
_ANSWERS: dict[str, pb.SiteAnswer] = {
    folder.COUNTED: pb.SITE_ANSWER_COUNTED,
    folder.MISSING: pb.SITE_ANSWER_MISSING,
    folder.FAILED: pb.SITE_ANSWER_FAILED,
    folder.REFUSED: pb.SITE_ANSWER_REFUSED,
}


def asked_of(request: pb.StartRunRequest) -> Asked:
    """Every field checked that can be without knowing the model. Raises InvalidInput."""
    _check_whole("rounds", request.rounds, 1, MAX_ROUNDS)
    min_sites = request.min_sites or MIN_SITES
    _check_whole("min_sites", min_sites, 1, MAX_SITES)
    _check("round_timeout_s", request.round_timeout_s, 0.0, MAX_ROUND_TIMEOUT_S)
    _check("largest_norm", request.largest_norm, 0.0, 1e12)
    if len(request.idempotency_key) > MAX_KEY_CHARACTERS:
        found = len(request.idempotency_key)
        raise InvalidInput(f"the idempotency key has {found} characters; at most {MAX_KEY_CHARACTERS} are taken")
    if len(request.sites) > MAX_SITES:
        raise InvalidInput(f"{len(request.sites)} sites are named; at most {MAX_SITES} are taken")
    name = request.strategy or strategies.DEFAULT
    if request.app:
        _check_own_app(request)
    return Asked(
        version=request.version,
        rounds=request.rounds,
        min_sites=min_sites,
        strategy="" if request.app else name,
        strategy_options={} if request.app else strategies.check(name, dict(request.strategy_options), min_sites),
        round_timeout_s=request.round_timeout_s or ROUND_TIMEOUT_S,
        settings=_settings(request.settings),
        sites=tuple(sorted(set(request.sites))),
        largest_norm=request.largest_norm,
        privacy=_privacy(request, name),
        when=_when(request.schedule),
        auto_promote=request.auto_promote,
        promotion=promotion_of(request.promote),
        idempotency_key=request.idempotency_key,
        fingerprint=hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest(),
    )


def promotion_of(options: pb.PromoteOptions) -> Promotion:
    """Raises InvalidInput."""
    found = Promotion(
        steps=tuple(options.steps),
        step_s=options.step_s,
        step_requests=options.step_requests,
        largest_site_loss=options.largest_site_loss if options.HasField("largest_site_loss") else None,
        smallest_mean_gain=options.smallest_mean_gain if options.HasField("smallest_mean_gain") else None,
    )
    # What a rollout would not take is refused here, and not after hours of rounds.
    plan_of(found)
    if found.largest_site_loss is not None:
        _check("largest_site_loss", found.largest_site_loss, 0.0, 1e12)
    if found.smallest_mean_gain is not None:
        _check("smallest_mean_gain", found.smallest_mean_gain, -1e12, 1e12)
    return found


def check_settings(settings: Mapping[str, str], known: Mapping[str, Any], whose: str) -> None:
    """Raises InvalidInput for what nobody would read."""
    for name in settings:
        if name not in known:
            raise InvalidInput(f"{whose} has no setting {name!r}; it has {', '.join(known) or 'none'}")


def _check_own_app(request: pb.StartRunRequest) -> None:
    """What an app of the data team's own decides by itself cannot be asked for."""
    for what, given in (
        ("a strategy", request.strategy or request.strategy_options),
        ("a largest norm", request.largest_norm),
        ("differential privacy", request.HasField("privacy")),
    ):
        if given:
            raise InvalidInput(f"an app of your own brings {what} itself; leave it out")
    if request.auto_promote:
        raise InvalidInput("what an app of your own ends in is not promoted: `nearmesh model publish` publishes it")


def _settings(given: Mapping[str, str]) -> dict[str, str]:
    if len(given) > MAX_SETTINGS:
        raise InvalidInput(f"{len(given)} settings; at most {MAX_SETTINGS} are taken")
    for name, text in sorted(given.items()):
        if len(name) + len(text) > MAX_SETTING_CHARACTERS:
            raise InvalidInput(f"setting {name[:20]!r} has {len(text)} characters; at most {MAX_SETTING_CHARACTERS}")
        if not isinstance(_value(name, text), (str, int, float, bool)):
            raise InvalidInput(f"setting {name} is {text}; expected a text, a number, true or false")
    return dict(sorted(given.items()))


def _value(name: str, text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        found = {}
    if found.keys() != {"value"}:
        raise InvalidInput(f'setting {name} is {text[:100]}, which is no value of TOML; a text is written "so"')
    if isinstance(found["value"], float) and not math.isfinite(found["value"]):
        raise InvalidInput(f"setting {name} is {text}; expected a finite number")
    if isinstance(found["value"], int) and not -(2**63) <= found["value"] < 2**63:
        raise InvalidInput(f"setting {name} is {text[:40]}; expected a whole number of 64 bits")
    return found["value"]


def _privacy(request: pb.StartRunRequest, strategy: str) -> Privacy:
    if not request.HasField("privacy"):
        return Privacy()
    given = request.privacy
    found = Privacy(
        noise_multiplier=given.noise_multiplier, clipping_norm=given.clipping_norm, delta=given.delta or DELTA
    )
    _check("noise_multiplier", found.noise_multiplier, 1e-6, 1e6)
    _check("clipping_norm", found.clipping_norm, 1e-12, 1e12)
    _check("delta", found.delta, 1e-12, 0.5)
    if not strategies.strategy(strategy).averages:
        averaging = ", ".join(name for name, one in strategies.STRATEGIES.items() if one.averages)
        raise InvalidInput(f"the noise of differential privacy is for means, and {strategy} makes none: {averaging}")
    return found


def _when(given: pb.Schedule) -> When:
    schedule.parse(given.window, given.idle_below, given.usd_per_hour_below)
    return When(window=given.window.strip(), idle_below=given.idle_below, usd_per_hour_below=given.usd_per_hour_below)


def _check(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise InvalidInput(f"{name} is {value:g}; expected {least:g} to {most:g}")


def _check_whole(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidInput(f"{name} is {value}; expected {least} to {most}")


# As the contract has them


def run_message(
    run: Run, rounds: Sequence[RoundRecord] = (), progress: Progress | None = None, *, sites: Mapping[str, str]
) -> pb.Run:
    """`sites` has the site of each node."""
    found = pb.Run(
        id=run.id,
        model=run.model,
        parent_version=run.parent_version,
        parent_digest=run.parent_digest,
        asked=_asked_message(run),
        state=_STATES[run.state],
        reason=run.reason,
        actor=run.actor,
        created_at_s=run.created_at_s,
        ended_at_s=run.ended_at_s,
        rounds=[_round_message(record, sites) for record in rounds],
        version=run.version,
        digest=run.digest,
        rollout=run.rollout,
        resumed=run.resumed,
        metric=run.metric,
        epsilon=rounds[-1].epsilon if rounds else 0.0,
        delta=run.asked.privacy.delta if run.asked.privacy.noise_multiplier else 0.0,
        own_app=run.own_app,
    )
    if progress is not None:
        found.progress.CopyFrom(
            pb.RoundProgress(
                number=progress.number,
                phase=progress.phase,
                began_at_s=progress.began_at_s,
                answered=progress.answered,
                missing=progress.missing,
            )
        )
    if run.checks is not None:
        found.gate.passed = all(check.passed for check in run.checks)
        found.gate.checks.extend(
            pb.GateCheck(name=check.name, passed=check.passed, detail=check.detail) for check in run.checks
        )
    return found


def without_sites(records: Sequence[RoundRecord]) -> list[RoundRecord]:
    """As a list of runs has them."""
    return [dataclasses.replace(record, sites=()) for record in records]


def _asked_message(run: Run) -> pb.StartRunRequest:
    asked, privacy, when = run.asked, run.asked.privacy, run.asked.when
    found = pb.StartRunRequest(
        model=run.model,
        version=asked.version,
        rounds=asked.rounds,
        min_sites=asked.min_sites,
        strategy=asked.strategy,
        strategy_options=asked.strategy_options,
        round_timeout_s=asked.round_timeout_s,
        settings=asked.settings,
        idempotency_key=asked.idempotency_key,
        auto_promote=asked.auto_promote,
        sites=asked.sites,
        largest_norm=asked.largest_norm,
        promote=_promotion_message(asked.promotion),
    )
    if privacy.noise_multiplier:
        found.privacy.CopyFrom(
            pb.Privacy(
                noise_multiplier=privacy.noise_multiplier, clipping_norm=privacy.clipping_norm, delta=privacy.delta
            )
        )
    if when != When():
        found.schedule.CopyFrom(
            pb.Schedule(window=when.window, idle_below=when.idle_below, usd_per_hour_below=when.usd_per_hour_below)
        )
    return found


def _promotion_message(promotion: Promotion) -> pb.PromoteOptions:
    return pb.PromoteOptions(
        steps=promotion.steps,
        step_s=promotion.step_s,
        step_requests=promotion.step_requests,
        largest_site_loss=promotion.largest_site_loss,
        smallest_mean_gain=promotion.smallest_mean_gain,
    )


def _round_message(record: RoundRecord, sites: Mapping[str, str]) -> pb.Round:
    return pb.Round(
        number=record.number,
        began_at_s=record.began_at_s,
        ended_at_s=record.ended_at_s,
        sites=[_site_message(site, sites.get(site.node, "")) for site in record.sites],
        train_metrics=record.train_metrics,
        metrics=record.metrics,
        late=record.late,
    )


def _site_message(record: SiteRecord, site: str) -> pb.SiteRound:
    return pb.SiteRound(
        node=record.node,
        site=site,
        answer=_ANSWERS.get(record.answer, pb.SITE_ANSWER_UNSPECIFIED),
        detail=record.detail,
        examples=record.examples,
        train_metrics=record.train_metrics,
        metrics=record.metrics,
        update_norm=record.update_norm,
        clipped=record.clipped,
        train_s=record.train_s,
        yielded_s=record.yielded_s,
        suspect=record.suspect,
    )
