"""The rounds of a run, from the last that is finished in its folder to the last that is planned.

Round 0 is the parent as the sites judge it. Every other is trained, made into a model, and evaluated. A round counts
when its record is on disk; whatever dies before, that is done again, except that a round whose model is on disk is
neither trained nor noised a second time.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import ConfigRecord, MessageType, RecordDict

from nearmesh.errors import InvalidInput
from nearmesh.round_messages import ARRAYS, BASE, CONFIG, RUN, SERVER_ROUND, SETTING, digest
from nearmesh.strategies import check as check_strategy
from nearmesh_controlplane.rounds import privacy
from nearmesh_controlplane.rounds.answers import Evaluated, evaluated, pooled
from nearmesh_controlplane.rounds.asking import Answer, Asking, Clock
from nearmesh_controlplane.rounds.attendance import Attendance
from nearmesh_controlplane.rounds.layout import Layout, Unfit, record_of
from nearmesh_controlplane.rounds.strategies import Aggregation
from nearmesh_controlplane.rounds.training import SILENT, judged, made
from nearmesh_controlplane.runs.folder import COUNTED, FAILED, MISSING, Arrays, Plan, RoundRecord, RunFolder, SiteRecord

log = logging.getLogger(__name__)

ABSENT = "it was not there"


@dataclass(frozen=True, slots=True)
class Said:
    """The sites' answers to EVALUATE or QUERY."""

    counted: Mapping[str, Evaluated]
    complaints: Mapping[str, str]
    borne: int = 0


def check(plan: Plan) -> None:
    """Raises InvalidInput for a plan that cannot be done."""
    check_strategy(plan.strategy, plan.strategy_options, plan.min_sites)
    privacy.check(plan)
    if plan.min_sites < 1 or plan.rounds < 1 or plan.round_timeout_s <= 0:
        raise InvalidInput(
            f"{plan.rounds} rounds of {plan.min_sites} sites in {plan.round_timeout_s:g} s; each has to be above 0"
        )


class Rounds:
    """One run, in one process."""

    def __init__(self, folder: RunFolder, asking: Asking, clock: Clock) -> None:
        """Raises InvalidInput for a plan that cannot be done."""
        self.folder = folder
        self.plan = folder.plan()
        check(self.plan)
        self._asking = asking
        self._clock = clock
        self.sites = Attendance(folder, self.plan, asking, clock)
        self._layout = Layout.of(folder.arrays(0))
        self._aggregation = Aggregation(self.plan.strategy, self.plan.strategy_options, self._layout)
        # Finished ones, in order; there may be thousands, so they are read once.
        self._done: list[RoundRecord] = []

    def run(self) -> Arrays:
        """The parameters after the last round. Raises GivenUp, InvalidInput."""
        self._done = self.folder.rounds() or [self._baseline()]
        finished = self._done[-1].number
        arrays = self.folder.arrays(finished)
        if finished:
            self._aggregation.restore(self.folder.state(finished))
        for number in range(finished + 1, self.plan.rounds + 1):
            arrays = self._round(number, arrays)
        return arrays

    def evaluate(self, number: int, message_type: str, content: RecordDict, silent: Collection[str] = ()) -> Said:
        """Enough of the sites say something. Raises GivenUp."""
        return self.sites.ask(number, "evaluating", message_type, lambda _nodes: content, self._said, silent=silent)

    def config(self, number: int, base: str) -> dict[str, Any]:
        """What every message tells a site."""
        settings = {SETTING + name: value for name, value in self.plan.settings.items()}
        return {SERVER_ROUND: number, RUN: self.plan.run, BASE: base, **settings}

    def _baseline(self) -> RoundRecord:
        began_s = self._clock.now_s()
        self.sites.hold(0)
        record = RoundRecord(number=0, began_at_s=began_s, ended_at_s=began_s)
        whole = self._evaluated(record, self.folder.arrays(0))
        self.folder.write_round(whole, None)
        return whole

    def _round(self, number: int, base: Arrays) -> Arrays:
        record = self.folder.trained(number)
        if record is None:
            self.sites.hold(number)
            record, arrays = self._trained(number, base)
            self.folder.write_trained(record, arrays, self._aggregation.state())
        else:
            arrays = self.folder.arrays(number)
            self._aggregation.restore(self.folder.state(number))
        whole = self._evaluated(record, arrays)
        self.folder.write_round(whole, None)
        self._done.append(whole)
        log.info("round %d of %d: %s", number, self.plan.rounds, whole.metrics)
        return arrays

    def _trained(self, number: int, base: Arrays) -> tuple[RoundRecord, Arrays]:
        began_s = self._clock.now_s()
        vector, known = self._layout.vector(base), digest(base)

        def content(nodes: Collection[int]) -> RecordDict:
            return self._aggregation.configure(number, base, self.config(number, known), nodes)

        found = self.sites.ask(
            number,
            "training",
            MessageType.TRAIN,
            content,
            lambda got: judged(
                got,
                aggregation=self._aggregation,
                plan=self.plan,
                layout=self._layout,
                base=vector,
                number=number,
                digest=known,
                before=self._done,
            ),
        )
        model, sites = made(
            found,
            aggregation=self._aggregation,
            plan=self.plan,
            base=base,
            number=number,
            before=self._done,
        )
        record = RoundRecord(
            number=number,
            began_at_s=began_s,
            ended_at_s=self._clock.now_s(),
            sites=list(sites.values()),
            train_metrics=pooled([(one.examples, one.figures) for one in found.counted.values()]),
            late=self._asking.take_late(),
            epsilon=privacy.epsilon(number, self.plan.noise_multiplier, self.plan.delta),
        )
        if record.epsilon:
            log.info("round %d: epsilon %.3f at delta %g", number, record.epsilon, self.plan.delta)
        return record, self._layout.arrays(model)

    def _evaluated(self, record: RoundRecord, arrays: Arrays) -> RoundRecord:
        """The whole record of a round whose model is made."""
        known = digest(arrays)
        config = ConfigRecord(self.config(record.number, known))
        content = RecordDict({ARRAYS: record_of(arrays), CONFIG: config})
        silent = [site.node for site in record.sites if site.answer == MISSING]
        said = self.evaluate(record.number, MessageType.EVALUATE, content, silent)
        sites = {site.node: site for site in record.sites}
        nodes = dict.fromkeys([*self.sites.nodes(), *sites, *said.counted, *said.complaints])
        whole = [_with_word(sites.get(node), node, said, trained=bool(record.number)) for node in nodes]
        return replace(
            record,
            ended_at_s=self._clock.now_s(),
            sites=whole,
            digest=known,
            metrics=pooled([(one.examples, one.figures) for one in said.counted.values()]),
            late=record.late + self._asking.take_late(),
        )

    def _said(self, got: Mapping[str, Answer | None]) -> Said:
        counted: dict[str, Evaluated] = {}
        complaints: dict[str, str] = {}
        for node, answer in got.items():
            if answer is None or answer.content is None:
                complaints[node] = answer.failed if answer else SILENT
                continue
            try:
                counted[node] = evaluated(answer.content, self.plan.metric)
            except Unfit as error:
                complaints[node] = str(error)
        return Said(counted, complaints)


def _with_word(site: SiteRecord | None, node: str, said: Said, *, trained: bool) -> SiteRecord:
    """A site's record with what it says of the round's model."""
    word, complaint = said.counted.get(node), said.complaints.get(node, "")
    if site is None and trained:
        # It came when training was over, or not at all.
        site = SiteRecord(node=node, answer=MISSING, detail=ABSENT)
    if site is None and word is not None:
        return SiteRecord(node=node, answer=COUNTED, examples=word.examples, metrics=word.figures)
    if site is None:
        answer = FAILED if complaint and complaint != SILENT else MISSING
        return SiteRecord(node=node, answer=answer, detail=complaint or ABSENT)
    if word is not None:
        return replace(site, metrics=word.figures)
    return replace(site, detail="; ".join(filter(None, [site.detail, complaint and f"evaluation: {complaint}"])))
