"""What a run keeps on disk while it trains: the plan, who the sites are, each finished round, and how it ended.

The control plane writes the plan and the sites; the server app, a process of its own that anything may kill, writes the
rest. Each file is whole or not there, so whoever comes back goes on from the last finished round.

    plan.json  sites.json            what to do, and whom to ask
    initial.npz                      the parameters that the run began from
    graph.onnx                       the parent's graph, of a run by recipe
    app/                             the Flower app that runs
    rounds/0000.json                 round 0: the parent, as the sites judged it
    rounds/0001.json  0001.npz       a finished round, and the parameters after it
    rounds/0002.trained  0002.npz    a round that is trained and not yet evaluated
    hold.json                        why no further round may begin for now; not there: they may
    progress.json                    the round under way; nobody relies on it
    candidate.onnx  candidate.json   the graph with the last parameters, and what the sites say of it
    end.json                         why the server app ended
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nearmesh.tls import write_private

# What became of a site's part in a round; SiteAnswer in run.proto.
COUNTED, MISSING, FAILED, REFUSED = "counted", "missing", "failed", "refused"

# The parameters by name, as the ONNX graph's initializers are called.
Arrays = dict[str, np.ndarray]

# Before the names of what a strategy remembers from round to round, beside the parameters in a round's file.
STATE = "nearmesh-state:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that the server app is told."""

    run: str
    model: str
    rounds: int
    min_sites: int
    strategy: str
    round_timeout_s: float
    # The metric that is judged, by its name in the sites' answers; higher is better.
    metric: str
    strategy_options: Mapping[str, float] = field(default_factory=dict)
    # What the recipe is told: the package's own settings with what was asked for over them.
    settings: Mapping[str, Any] = field(default_factory=dict)
    # Names of the parameters; empty in a run of a data team's own app.
    parameters: Sequence[str] = ()
    # L2 norm that an update is shortened to; 0: not.
    largest_norm: float = 0.0
    # Differential privacy; a multiplier of 0: none.
    noise_multiplier: float = 0.0
    clipping_norm: float = 0.0
    delta: float = 1e-5
    # Largest difference between the framework's outputs and the ONNX graph's.
    tolerance: float = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteInfo:
    """Who is behind a Flower node id."""

    node: str
    site: str
    region: str
    # What the lineage calls it, so that a served model does not say whose data it has seen.
    pseudonym: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRecord:
    """One site's part in a round."""

    node: str
    answer: str
    detail: str = ""
    examples: int = 0
    train_metrics: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    update_norm: float = 0.0
    clipped: bool = False
    train_s: float = 0.0
    yielded_s: float = 0.0
    suspect: bool = False
    # The round since which it is suspected for going against the others; 0: it is not.
    against: int = 0
    # Digest of the parameters that it sent.
    sent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """A finished round. Times are seconds since the epoch."""

    number: int
    began_at_s: float
    ended_at_s: float
    sites: Sequence[SiteRecord] = ()
    # Over the sites, weighted by examples.
    train_metrics: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    late: int = 0
    # Spent so far, where there is differential privacy.
    epsilon: float = 0.0
    # Of the parameters after it.
    digest: str = ""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> RoundRecord:
        sites = [SiteRecord(**site) for site in content["sites"]]
        return cls(**{**content, "sites": sites})


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The round under way, for whoever watches."""

    number: int
    # "waiting", "training" or "evaluating".
    phase: str
    began_at_s: float
    # Nodes.
    answered: Sequence[str] = ()
    missing: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What one site says of the candidate's ONNX graph on the data that it held back."""

    node: str
    examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    # Largest difference between the framework's outputs and the graph's; none where there is no framework.
    difference: float | None = None
    # Why it says nothing; empty: it does.
    failed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Why the server app ended; an empty reason: all is done."""

    reason: str = ""


class RunFolder:
    """One run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.app = path / "app"
        self.graph = path / "graph.onnx"
        self.candidate_graph = path / "candidate.onnx"
        self._rounds = path / "rounds"

    # The control plane's part

    def make(self) -> None:
        self._rounds.mkdir(parents=True, exist_ok=True)

    def write_plan(self, plan: Plan) -> None:
        write_private(self.path / "plan.json", _json(asdict(plan)))

    def write_sites(self, sites: Mapping[int, SiteInfo]) -> None:
        """By Flower's node id."""
        write_private(self.path / "sites.json", _json({str(id): asdict(site) for id, site in sites.items()}))

    def put_round(self, record: RoundRecord, content: bytes | None) -> None:
        """A finished round that another control plane had, with the file of its parameters where that is kept."""
        if content is not None:
            write_private(self._rounds / f"{record.number:04}.npz", content)
        write_private(self._rounds / f"{record.number:04}.json", _json(asdict(record)))

    def write_initial(self, arrays: Arrays) -> None:
        write_private(self.path / "initial.npz", npz(arrays))

    def hold(self, reason: str) -> None:
        """No further round begins until `release`; one that has begun ends."""
        write_private(self.path / "hold.json", _json({"reason": reason}))

    def release(self) -> None:
        (self.path / "hold.json").unlink(missing_ok=True)

    # The server app's part

    def plan(self) -> Plan:
        return Plan(**_read(self.path / "plan.json"))

    def sites(self) -> dict[int, SiteInfo]:
        return {int(id): SiteInfo(**site) for id, site in (_read(self.path / "sites.json") or {}).items()}

    def held(self) -> str:
        """Why no further round may begin; empty: one may."""
        return str((_read(self.path / "hold.json") or {}).get("reason", ""))

    def write_trained(self, record: RoundRecord, arrays: Arrays, state: Arrays | None = None) -> None:
        """So that a round which dies in its evaluation is not trained, or noised, a second time.

        `state` is what the strategy remembers.
        """
        remembered = {STATE + name: array for name, array in (state or {}).items()}
        write_private(self._rounds / f"{record.number:04}.npz", npz({**arrays, **remembered}))
        write_private(self._rounds / f"{record.number:04}.trained", _json(asdict(record)))

    def write_round(self, record: RoundRecord, arrays: Arrays | None) -> None:
        """Finished when this returns: on disk, whatever dies next. `arrays` is None for round 0, and after
        `write_trained`, which has written them."""
        if arrays is not None:
            write_private(self._rounds / f"{record.number:04}.npz", npz(arrays))
        # Last, since by its being there a round is finished.
        write_private(self._rounds / f"{record.number:04}.json", _json(asdict(record)))
        (self._rounds / f"{record.number:04}.trained").unlink(missing_ok=True)

    def write_progress(self, progress: Progress) -> None:
        write_private(self.path / "progress.json", _json(asdict(progress)))

    def write_judged(self, judged: Sequence[Judged]) -> None:
        """With `candidate_graph`, which has to be there first."""
        write_private(self.path / "candidate.json", _json([asdict(one) for one in judged]))

    def write_end(self, end: End) -> None:
        write_private(self.path / "end.json", _json(asdict(end)))

    # Both

    def rounds(self) -> list[RoundRecord]:
        """Those finished, in order."""
        # By number: names have four digits, and five from round 10,000 on.
        paths = sorted(self._rounds.glob("*.json"), key=lambda path: int(path.stem))
        return [RoundRecord.of(_read(path)) for path in paths]

    def round(self, number: int) -> RoundRecord | None:
        """None: it is not finished."""
        found = _read(self._rounds / f"{number:04}.json")
        return RoundRecord.of(found) if found else None

    def content(self, number: int) -> bytes | None:
        """The file of the parameters after a finished round, with what the strategy remembers; none after round 0."""
        path = self._rounds / f"{number:04}.npz"
        return path.read_bytes() if path.is_file() else None

    def arrays(self, number: int) -> Arrays:
        """The parameters after a finished round; 0: those that the run began from. Raises OSError, ValueError."""
        return {name: array for name, array in self._held(number).items() if not name.startswith(STATE)}

    def state(self, number: int) -> Arrays:
        """What the strategy remembered after a round; empty where it remembers nothing. Raises OSError, ValueError."""
        found = self._held(number).items()
        return {name.removeprefix(STATE): array for name, array in found if name.startswith(STATE)}

    def trained(self, number: int) -> RoundRecord | None:
        """A round whose training is over and whose evaluation is not; its arrays are there."""
        found = _read(self._rounds / f"{number:04}.trained")
        return RoundRecord.of(found) if found else None

    def progress(self) -> Progress | None:
        found = _read(self.path / "progress.json")
        return Progress(**found) if found else None

    def judged(self) -> list[Judged] | None:
        found = _read(self.path / "candidate.json")
        return None if found is None else [Judged(**one) for one in found]

    def end(self) -> End | None:
        found = _read(self.path / "end.json")
        return End(**found) if found else None

    def _held(self, number: int) -> Arrays:
        path = self._rounds / f"{number:04}.npz" if number else self.path / "initial.npz"
        return from_npz(path.read_bytes())

    def clear_end(self) -> None:
        """Before the server app is started again."""
        (self.path / "end.json").unlink(missing_ok=True)


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """By name, not compressed."""
    held = io.BytesIO()
    np.savez(held, **arrays)  # type: ignore[arg-type]
    return held.getvalue()


def from_npz(content: bytes) -> Arrays:
    """Raises ValueError for what is no such file."""
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
