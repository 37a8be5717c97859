"""The sites' answers to one TRAIN, judged and made into the next model; with what is to be said of each site.

Pure, but for the noise. In order: what is no answer to this round is refused; each update is measured, and shortened;
those that stand far from the others are named; the strategy makes the model. A robust strategy bears some sites that
send anything. Those that were refused are of them, and so are the suspects, which it does without, as long as there are
no more of both than it bears; with more, nobody can say who is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nearmesh_controlplane.rounds import distrust, privacy
from nearmesh_controlplane.rounds.answers import Trained, trained
from nearmesh_controlplane.rounds.asking import Answer
from nearmesh_controlplane.rounds.layout import Layout, Unfit, Vector
from nearmesh_controlplane.rounds.strategies import Aggregation, Part
from nearmesh_controlplane.runs.folder import COUNTED, FAILED, MISSING, REFUSED, Arrays, Plan, RoundRecord, SiteRecord

# Of a site that was asked.
SILENT = "no answer in time"


@dataclass(frozen=True, slots=True)
class Judged:
    """A round's answers: what is said of each node that was asked, and the answers that count."""

    sites: Mapping[str, SiteRecord]
    counted: Mapping[str, Trained]
    # Refused ones that the strategy bears: of those that sent something, they are its malicious ones.
    borne: int = 0

    @property
    def complaints(self) -> dict[str, str]:
        return {node: f"{site.answer}: {site.detail}" for node, site in self.sites.items() if node not in self.counted}


def judged(
    got: Mapping[str, Answer | None],
    *,
    aggregation: Aggregation,
    plan: Plan,
    layout: Layout,
    base: Vector,
    number: int,
    digest: str,
    before: Sequence[RoundRecord],
) -> Judged:
    """By node; None: it was silent. `digest` is that of the parameters that were sent, `before` are earlier rounds."""
    old = _old(before, digest)
    sites: dict[str, SiteRecord] = {}
    counted: dict[str, Trained] = {}
    for node, answer in got.items():
        if answer is None:
            sites[node] = SiteRecord(node=node, answer=MISSING, detail=SILENT)
        elif answer.content is None:
            sites[node] = SiteRecord(node=node, answer=FAILED, detail=answer.failed)
        else:
            try:
                read = trained(answer.content, layout=layout, base=base, number=number, digest=digest, old=old)
            except Unfit as error:
                sites[node] = SiteRecord(node=node, answer=REFUSED, detail=str(error))
            else:
                sites[node], counted[node] = _record(node, read, largest_norm(plan)), read
    refused = sum(site.answer == REFUSED for site in sites.values())
    return Judged(sites, counted, borne=min(refused, aggregation.bears(len(counted) + refused)))


def made(
    found: Judged, *, aggregation: Aggregation, plan: Plan, base: Arrays, number: int, before: Sequence[RoundRecord]
) -> tuple[Vector, dict[str, SiteRecord]]:
    """The next model, and the sites with those named that are suspected or left out; `before` are the earlier rounds.

    Raises InvalidInput.
    """
    largest = largest_norm(plan)
    why, against = _suspicions(found, number, before)
    suspected = [node for node in found.counted if why[node]]
    malicious = aggregation.bears(len(found.counted) + found.borne) - found.borne
    without = suspected if len(suspected) <= malicious else []
    parts = [
        Part(node=node, update=distrust.clipped(one.update, largest), examples=one.examples)
        for node, one in found.counted.items()
        if node not in without
    ]
    if plan.noise_multiplier:
        # The optimizers see the noised mean alone: what they make of it costs no more privacy.
        noised = privacy.noised_mean([part.update for part in parts], plan, np.random.default_rng())
        parts = [Part(node="", update=noised, examples=1)]
    result = aggregation.aggregate(number, base, parts, malicious - len(without))
    left_out = {**result.left_out, **dict.fromkeys(without, "left out")}
    return result.vector, {
        node: replace(
            record,
            suspect=node in suspected,
            against=against.get(node, 0),
            detail="; ".join(filter(None, [record.detail, why.get(node), left_out.get(node)])),
        )
        for node, record in found.sites.items()
    }


def _old(before: Sequence[RoundRecord], digest: str) -> dict[str, str]:
    """Parameters that nobody can have come to by training in this round, by digest; and what they are."""
    models = {record.digest: f"the model after round {record.number}" for record in before}
    sent = {
        site.sent: f"what {site.node} has sent in round {record.number}" for record in before for site in record.sites
    }
    # A site may find nothing to change.
    return {key: what for key, what in {**sent, **models}.items() if key and key != digest}


def _suspicions(found: Judged, number: int, before: Sequence[RoundRecord]) -> tuple[dict[str, str], dict[str, int]]:
    """Why sites are suspected, those that are not with nothing; and since which round some go against the others."""
    earlier = [site for record in before for site in record.sites]
    longest = max((site.update_norm for site in earlier if not site.suspect), default=0.0)
    # As they were sent: who sent too much is to be named.
    fresh = distrust.suspicions([one.update for one in found.counted.values()], longest)
    against = {site.node: site.against for site in earlier if site.against}
    why: dict[str, str] = {}
    for node, suspicion in zip(found.counted, fresh, strict=True):
        if suspicion.against:
            against.setdefault(node, number)
        since = against.get(node, number)
        why[node] = suspicion.reason or ("" if since == number else f"it went against the others in round {since}")
    return why, against


def largest_norm(plan: Plan) -> float:
    """That an update may have; 0: any."""
    norms = [plan.largest_norm, plan.clipping_norm if plan.noise_multiplier else 0.0]
    return min((norm for norm in norms if norm), default=0.0)


def _record(node: str, read: Trained, largest: float) -> SiteRecord:
    length = distrust.norm(read.update)
    return SiteRecord(
        node=node,
        answer=COUNTED,
        sent=read.sent,
        examples=read.examples,
        train_metrics=read.figures,
        update_norm=length,
        clipped=bool(largest) and length > largest,
        train_s=read.train_s,
        yielded_s=read.yielded_s,
    )
