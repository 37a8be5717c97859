"""Which sites a round asks, for how long it waits for them, and when a run gives up.

A round begins when enough sites are there. It goes on without those that are silent when its time is over, if enough
have answered; else the same question is asked again, after a pause, of those who are there then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from flwr.app import RecordDict

from nearmesh.errors import MeshError
from nearmesh_controlplane.rounds.asking import Answer, Asking, Clock, Question
from nearmesh_controlplane.runs.folder import Plan, Progress, RunFolder, SiteInfo

# Trials of one question in a row that too few sites answered, before the run gives up. What goes away by itself, such
# as a site that is out of reach, is over by then; what does not is a recipe that fails everywhere.
TRIALS = 5
# Before the second; doubled for each further one. So that sites that fail at once are not asked without a pause.
PAUSE_S = 2.0
# Once enough sites are there, so long for the others, whose processes may just be starting.
GRACE_S = 20.0
# Between two looks at who is there.
LOOK_S = 0.5
# That a reason names; there may be hundreds.
_NAMED = 8


class GivenUp(MeshError):
    """The run cannot go on; the message says which sites did what."""


class Reading(Protocol):
    """The answers to one question as they were read."""

    @property
    def counted(self) -> Collection[str]: ...

    @property
    def borne(self) -> int:
        """Answers that do not count, and that the round may do without as if they did."""
        ...

    @property
    def complaints(self) -> Mapping[str, str]:
        """Why a node does not count, by node."""
        ...


R = TypeVar("R", bound=Reading)


class Attendance:
    """The sites of one run."""

    def __init__(self, folder: RunFolder, plan: Plan, asking: Asking, clock: Clock) -> None:
        self._folder = folder
        self._plan = plan
        self._asking = asking
        self._clock = clock
        # Waited for once, and not there; not waited for again.
        self._absent: set[int] = set()

    def hold(self, number: int) -> None:
        """Returns when a round may begin."""
        if self._folder.held():
            self._tell(number, "waiting", self._clock.now_s())
        while self._folder.held():
            self._clock.sleep(LOOK_S)

    def ask(
        self,
        number: int,
        phase: str,
        message_type: str,
        content_for: Callable[[Collection[int]], RecordDict],
        read: Callable[[dict[str, Answer | None]], R],
        *,
        silent: Collection[str] = (),
    ) -> R:
        """Answers of at least as many sites as the plan wants. Raises GivenUp.

        `silent` nodes have cost this round its time already; they are asked only where it does not go without them.
        """
        question: Question | None = None
        got: dict[str, Answer | None] = {}
        found: R | None = None
        try:
            for trial in range(TRIALS):
                if trial:
                    self._clock.sleep(PAUSE_S * 2 ** (trial - 1))
                present = self._present(number)
                others = {id: site for id, site in present.items() if site.node not in silent}
                if not trial and len(others) >= self._plan.min_sites:
                    present = others
                question = question or Question(content_for(present), message_type, str(number))
                # Who has answered well is not asked again.
                counted = found.counted if found else ()
                asked = {id: site for id, site in present.items() if site.node not in counted}
                got |= self._once(number, phase, question, asked, list(counted))
                found = read(got)
                if found.counted and len(found.counted) + found.borne >= self._plan.min_sites:
                    return found
        finally:
            if question:
                self._asking.close(question)
        complaints = found.complaints if found else {}
        said = "; ".join(f"{node}: {complaint}" for node, complaint in list(complaints.items())[:_NAMED])
        raise GivenUp(
            f"round {number}, {phase}: in {TRIALS} trials never {self._plan.min_sites} sites had an answer that "
            f"counts ({said or 'nobody complained'}); mend these sites, or start a run with fewer of them (min-sites)"
        )

    def nodes(self) -> list[str]:
        """All that the run may ask, there or not."""
        return [site.node for site in self._folder.sites().values()]

    def _present(self, number: int) -> dict[int, SiteInfo]:
        """Waits until enough sites are there, and for the others a while."""
        began_s = self._clock.now_s()
        enough_s: float | None = None
        told: set[int] | None = None
        while True:
            sites, online = self._folder.sites(), self._asking.online()
            present = {id: site for id, site in sites.items() if id in online}
            now_s = self._clock.now_s()
            if len(present) >= self._plan.min_sites:
                enough_s = now_s if enough_s is None else enough_s
                missing = sites.keys() - present.keys()
                if missing <= self._absent or now_s - enough_s >= min(GRACE_S, self._plan.round_timeout_s):
                    self._absent = missing
                    return present
            if told != present.keys():
                told = set(present)
                here = [site.node for site in present.values()]
                self._tell(number, "waiting", began_s, here, [node for node in self.nodes() if node not in here])
            self._clock.sleep(LOOK_S)

    def _once(
        self, number: int, phase: str, question: Question, asked: Mapping[int, SiteInfo], had: list[str]
    ) -> dict[str, Answer | None]:
        began_s = self._clock.now_s()

        def told(answers: Mapping[int, Answer]) -> None:
            here = [*had, *(site.node for id, site in asked.items() if id in answers)]
            missing = [site.node for id, site in asked.items() if id not in answers]
            self._tell(number, phase, began_s, here, missing)

        told({})
        answers = self._asking.ask(question, list(asked), began_s + self._plan.round_timeout_s, told)
        return {site.node: answers.get(id) for id, site in asked.items()}

    def _tell(
        self, number: int, phase: str, began_s: float, answered: Sequence[str] = (), missing: Sequence[str] = ()
    ) -> None:
        self._folder.write_progress(
            Progress(number=number, phase=phase, began_at_s=began_s, answered=answered, missing=missing)
        )
