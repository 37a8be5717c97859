"""A run: what was asked, and how far it has come. Everything here is on disk at every moment.

Its finished rounds are kept beside it (`store`), since they are many; what a round under way is at lies in the run's
folder alone.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from nearmesh_controlplane.runs.folder import Judged

State = Literal[
    "waiting",
    "training",
    "trained",
    "checking",
    "publishing",
    "rolling out",
    "served",
    "refused",
    "rolled back",
    "stopped",
    "failed",
]
STATES: tuple[State, ...] = get_args(State)
ENDED = ("served", "refused", "rolled back", "stopped", "failed")
# Of these, a model has one at a time: what one run ends in is what the next one begins from.
AT_WORK = ("training", "checking", "publishing", "rolling out")

# "round": when the round under way has ended; "now": at once.
Stopping = Literal["", "round", "now"]

# How the version of a run is called: its parent's name, without what an earlier run put there, and the run's id.
_OF_A_RUN = re.compile(r"-r[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """Differential privacy; a multiplier of 0: none."""

    noise_multiplier: float = 0.0
    clipping_norm: float = 0.0
    delta: float = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """When rounds may run; all have to hold."""

    window: str = ""
    idle_below: float = 0.0
    usd_per_hour_below: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """How a trained run is judged and rolled out. None and 0: as the package, or a rollout, has it."""

    steps: tuple[float, ...] = ()
    step_s: float = 0.0
    step_requests: int = 0
    largest_site_loss: float | None = None
    smallest_mean_gain: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked for, with the defaults for what was left open."""

    # As it was named; empty: it was not.
    version: str = ""
    rounds: int
    min_sites: int = 2
    strategy: str = "fedavg"
    strategy_options: Mapping[str, float] = field(default_factory=dict)
    round_timeout_s: float = 120.0
    # Those that were given, each as in TOML.
    settings: Mapping[str, str] = field(default_factory=dict)
    sites: tuple[str, ...] = ()
    largest_norm: float = 0.0
    privacy: Privacy = field(default_factory=Privacy)
    when: When = field(default_factory=When)
    auto_promote: bool = False
    promotion: Promotion = field(default_factory=Promotion)
    idempotency_key: str = ""
    # Of the request: the same key with other words is a mistake.
    fingerprint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that the gate looked at."""

    name: str
    passed: bool
    # With the figures.
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run. Times are seconds since the epoch."""

    id: str
    model: str
    parent_version: str
    parent_digest: str
    asked: Asked
    actor: str
    created_at_s: float
    # The data team's own app, instead of the package's recipe.
    own_app: bool = False
    # Name of the figure that is judged; empty where it is not known.
    metric: str = ""
    state: State = "waiting"
    # Why it waits, or what is to be known of its end.
    reason: str = ""
    ended_at_s: float = 0.0
    # Nodes that are asked, and what the lineage calls each.
    nodes: Mapping[str, str] = field(default_factory=dict)
    # The engine's run that was begun last for it; empty: none, or it was ended on purpose.
    engine_run: str = ""
    # One was begun and has not been ended on purpose: beginning another one is a resumption.
    begun: bool = False
    resumed: int = 0
    # Attempts since anything got done, and when the next one may be.
    tries: int = 0
    again_at_s: float = 0.0
    stopping: Stopping = ""
    # Who takes it into serving; empty: nobody yet.
    promoted_by: str = ""
    promotion: Promotion = field(default_factory=Promotion)
    # What the sites say of the candidate; None: it was not shown to them.
    judged: tuple[Judged, ...] | None = None
    # What the gate saw; None: it has not looked.
    checks: tuple[Check, ...] | None = None
    # What it was published as, and by which rollout it goes into serving.
    version: str = ""
    digest: str = ""
    rollout: int = 0
    # Grows with each change on disk: who changes it says which one it saw.
    revision: int = 0

    @property
    def name(self) -> str:
        return f"{self.id} of {self.model}"

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def at_work(self) -> bool:
        return self.state in AT_WORK

    @property
    def active(self) -> bool:
        """It goes on by itself."""
        return self.state == "waiting" or self.at_work

    @property
    def new_version(self) -> str:
        """What a version is called that comes of it."""
        return version_of(self.parent_version, self.id)

    def content(self) -> dict[str, Any]:
        """As JSON has it; without what has a column of its own."""
        found = dataclasses.asdict(self)
        return {key: value for key, value in found.items() if key not in ("id", "model", "state", "revision")}


def from_content(id: str, model: str, state: State, revision: int, content: Mapping[str, Any]) -> Run:
    """What `content` made."""
    values = dict(content)
    asked = dict(values.pop("asked"))
    judged, checks = values.pop("judged"), values.pop("checks")
    asked |= {
        "sites": tuple(asked["sites"]),
        "privacy": Privacy(**asked["privacy"]),
        "when": When(**asked["when"]),
        "promotion": _promotion(asked["promotion"]),
    }
    return Run(
        id=id,
        model=model,
        state=state,
        revision=revision,
        asked=Asked(**asked),
        promotion=_promotion(values.pop("promotion")),
        judged=None if judged is None else tuple(Judged(**one) for one in judged),
        checks=None if checks is None else tuple(Check(**one) for one in checks),
        **values,
    )


def new_id() -> str:
    """It stands in the names of versions and folders, and is never used again."""
    return f"r{secrets.token_hex(4)}"


def version_of(parent: str, run: str) -> str:
    """What a version is called that a run makes of another one."""
    return f"{_OF_A_RUN.sub('', parent)}-{run}"


def new_pseudonym() -> str:
    """Says nothing of the node, and is another one in each run."""
    return f"site-{secrets.token_hex(3)}"


def _promotion(content: Mapping[str, Any]) -> Promotion:
    return Promotion(**{**content, "steps": tuple(content["steps"])})
