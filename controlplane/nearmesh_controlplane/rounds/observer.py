"""A run of a data team's own app, watched: each round goes into the run's folder, and a later start goes on after it.

The app is as Flower's documentation teaches, and knows nothing of this: its strategy's `start` is what is watched. What
a strategy does between rounds stays its own; only the numbers of the rounds that it is told go on where they were.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from nearmesh.round_messages import NUM_EXAMPLES
from nearmesh_controlplane.rounds import run_grid
from nearmesh_controlplane.rounds.answers import MOST_EXAMPLES
from nearmesh_controlplane.rounds.layout import record_of
from nearmesh_controlplane.runs.folder import (
    COUNTED,
    FAILED,
    MISSING,
    Arrays,
    Progress,
    RoundRecord,
    RunFolder,
    SiteInfo,
    SiteRecord,
)

# How often it is looked whether a round may begin again.
LOOK_EVERY_S = 0.5
# Of what a site says of its failure.
LONGEST_DETAIL = 200
_METHODS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")
# Between an attribute's name and what of it: a strategy's memory, as one set of arrays.
_OF = "/"

CentralEvaluation = Callable[[int, ArrayRecord], MetricRecord | None]


def start(
    original: Callable[..., Result],
    folder: RunFolder,
    strategy: Strategy,
    grid: Grid,
    initial_arrays: ArrayRecord,
    num_rounds: int = 3,
    timeout: float = 3600,
    train_config: ConfigRecord | None = None,
    evaluate_config: ConfigRecord | None = None,
    evaluate_fn: CentralEvaluation | None = None,
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """`strategy.start`, of which `original` is Flower's own: the rounds that are left, and a result of all of them."""
    done = [record for record in folder.rounds() if record.number]
    last = done[-1].number if done else 0
    if last:
        initial_arrays = record_of(folder.arrays(last))
        _remember(strategy, folder.state(last))
    else:
        folder.write_initial(to_arrays(initial_arrays))
    watched = _Watched(strategy, folder, last, initial_arrays, evaluate_fn is not None, clock, sleep)
    with watched:
        found = original(
            strategy,
            run_grid.soon(run_grid.only_sites(grid, folder), watched.heard, clock, sleep),
            initial_arrays,
            max(0, num_rounds - last),
            timeout,
            train_config,
            evaluate_config,
            watched.central(evaluate_fn) if evaluate_fn else None,
        )
    return _whole(found, done, last, initial_arrays)


class _Watched:
    """A strategy's own methods, each with a look at what goes through it."""

    def __init__(
        self,
        strategy: Strategy,
        folder: RunFolder,
        last: int,
        arrays: ArrayRecord,
        central: bool,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._strategy = strategy
        self._folder = folder
        self._last = last
        self._arrays = arrays
        # Somebody judges after the sites have, and belongs to the round.
        self._central = central
        self._clock = clock
        self._sleep = sleep
        self._round = _Round(last, 0.0)
        self._under_way = Progress(number=last, phase="waiting", began_at_s=clock())

    def __enter__(self) -> None:
        wrap = (self._configure_train, self._aggregate_train, self._configure_evaluate, self._aggregate_evaluate)
        for name, around in zip(_METHODS, wrap, strict=True):
            setattr(self._strategy, name, around(getattr(self._strategy, name)))

    def __exit__(self, *_: object) -> None:
        for name in _METHODS:
            delattr(self._strategy, name)

    def _configure_train(self, own: Callable[..., Iterable[Message]]) -> Callable[..., Iterable[Message]]:
        def configure(server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
            self._wait(server_round + self._last)
            self._round = _Round(server_round + self._last, self._clock())
            self._arrays = arrays
            messages = list(own(server_round + self._last, arrays, config, grid))
            self._round.trainers = self._asked(messages, "training")
            return messages

        return configure

    def _aggregate_train(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def aggregate(server_round: int, replies: Iterable[Message]) -> Any:
            before, answers = to_arrays(self._arrays), list(replies)
            # Before the strategy's own, which may take the records apart.
            self._round.trained = {
                node: _trained(answer, before) for node, answer in _by_node(answers, self._round.trainers).items()
            }
            arrays, metrics = own(server_round + self._last, answers)
            if arrays is not None:
                self._arrays = arrays
            self._round.train_metrics = _figures(metrics)
            return arrays, metrics

        return aggregate

    def _configure_evaluate(self, own: Callable[..., Iterable[Message]]) -> Callable[..., Iterable[Message]]:
        def configure(server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
            messages = list(own(server_round + self._last, arrays, config, grid))
            self._round.judges = self._asked(messages, "evaluating")
            return messages

        return configure

    def _aggregate_evaluate(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def aggregate(server_round: int, replies: Iterable[Message]) -> Any:
            answers = list(replies)
            self._round.judged = {
                node: {} if answer is None or answer.has_error() else _figures_of(answer)
                for node, answer in _by_node(answers, self._round.judges).items()
            }
            metrics = own(server_round + self._last, answers)
            self._round.metrics = _figures(metrics)
            if not self._central:
                self._write()
            return metrics

        return aggregate

    def central(self, own: CentralEvaluation) -> CentralEvaluation:
        """The app's own evaluation beside the sites'; its figures stand with theirs, theirs first."""

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = own(server_round + self._last, arrays)
            if server_round:
                self._round.metrics = {**_figures(metrics), **self._round.metrics}
                self._write()
            return metrics

        return evaluate

    def heard(self, nodes: Iterable[int]) -> None:
        """Whose answers have come."""
        names = self._folder.sites()
        answered = {_site(names, node).node for node in nodes}
        now = self._under_way
        asked = [*now.answered, *now.missing]
        self._tell(
            dataclasses.replace(
                now,
                answered=[node for node in asked if node in answered],
                missing=[node for node in asked if node not in answered],
            )
        )

    def _asked(self, messages: Iterable[Message], phase: str) -> tuple[int, ...]:
        asked = tuple(message.metadata.dst_node_id for message in messages)
        if asked:
            self._progress(self._round.number, phase, asked)
        return asked

    def _wait(self, number: int) -> None:
        """Until a round may begin."""
        while self._folder.held():
            self._progress(number, "waiting", ())
            self._sleep(LOOK_EVERY_S)

    def _progress(self, number: int, phase: str, asked: Iterable[int]) -> None:
        names = self._folder.sites()
        missing = [_site(names, node).node for node in asked]
        began_at_s = self._clock() if phase == "waiting" else self._round.began_at_s
        self._tell(Progress(number=number, phase=phase, began_at_s=began_at_s, missing=missing))

    def _tell(self, progress: Progress) -> None:
        self._under_way = progress
        self._folder.write_progress(progress)

    def _write(self) -> None:
        record = self._round.record(self._folder.sites(), self._clock())
        self._folder.write_trained(record, to_arrays(self._arrays), _memory(self._strategy))
        self._folder.write_round(record, None)
        self._progress(record.number + 1, "waiting", ())


class _Round:
    """What is known of the round under way. Sites by Flower's node id."""

    def __init__(self, number: int, began_at_s: float) -> None:
        self.number = number
        self.began_at_s = began_at_s
        self.trainers: tuple[int, ...] = ()
        self.trained: dict[int, dict[str, Any]] = {}
        self.train_metrics: dict[str, float] = {}
        self.judges: tuple[int, ...] = ()
        self.judged: dict[int, dict[str, float]] = {}
        self.metrics: dict[str, float] = {}

    def record(self, names: Mapping[int, SiteInfo], now_s: float) -> RoundRecord:
        return RoundRecord(
            number=self.number,
            began_at_s=self.began_at_s,
            ended_at_s=now_s,
            sites=[self._site(names, node) for node in sorted({*self.trainers, *self.judges})],
            train_metrics=self.train_metrics,
            metrics=self.metrics,
        )

    def _site(self, names: Mapping[int, SiteInfo], node: int) -> SiteRecord:
        judged = dict(self.judged.get(node, {}))
        examples = _count(judged.pop(NUM_EXAMPLES, 0))
        # One that was only asked to judge.
        other = {"answer": COUNTED if judged else MISSING, "examples": examples}
        return SiteRecord(node=_site(names, node).node, metrics=judged, **self.trained.get(node, other))


def to_arrays(record: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in record.items()}


def _by_node(answers: Iterable[Message], asked: Iterable[int]) -> dict[int, Message | None]:
    """The answer of everybody who was asked; None: there is none."""
    found = {answer.metadata.src_node_id: answer for answer in answers}
    return {node: found.get(node) for node in asked}


def _trained(answer: Message | None, before: Arrays) -> dict[str, Any]:
    """A site's part in the training."""
    if answer is None:
        return {"answer": MISSING}
    if answer.has_error():
        return {"answer": FAILED, "detail": (answer.error.reason or f"error {answer.error.code}")[:LONGEST_DETAIL]}
    figures = _figures_of(answer)
    examples = _count(figures.pop(NUM_EXAMPLES, 0))
    return {
        "answer": COUNTED,
        "examples": examples,
        "train_metrics": figures,
        "update_norm": _norm(answer, before),
    }


def _count(said: float) -> int:
    """0 where it is none; a site may say anything."""
    return int(said) if 0 <= said <= MOST_EXAMPLES else 0


def _norm(answer: Message, before: Arrays) -> float:
    """L2 norm of what the site changed; 0 where what it sent is of another form."""
    for record in answer.content.array_records.values():
        if record.keys() == before.keys():
            after = to_arrays(record)
            if all(after[name].shape == array.shape and _is_number(array) for name, array in before.items()):
                parts = [np.linalg.norm(after[name].astype(np.float64) - array) for name, array in before.items()]
                return float(np.linalg.norm(parts))
    return 0.0


def _is_number(array: np.ndarray[Any, Any]) -> bool:
    return np.issubdtype(array.dtype, np.number)


def _figures_of(answer: Message) -> dict[str, float]:
    """All its metrics that are one number."""
    records = answer.content.metric_records.values()
    return {name: value for record in records for name, value in _figures(record, keep=NUM_EXAMPLES).items()}


def _figures(record: MetricRecord | None, keep: str = "") -> dict[str, float]:
    return {
        name: float(value)
        for name, value in (record or {}).items()
        if isinstance(value, int | float) and (name != NUM_EXAMPLES or keep == name)
    }


def _site(names: Mapping[int, SiteInfo], node: int) -> SiteInfo:
    unknown = str(node)
    return names.get(node) or SiteInfo(node=unknown, site="", region="", pseudonym=unknown)


def _memory(strategy: Strategy) -> Arrays:
    """What a strategy remembers from round to round, such as momenta: attributes that are sets of arrays."""
    found: Arrays = {}
    for name, value in vars(strategy).items():
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        arrays = {f"{name}{_OF}{'[]' if isinstance(value, list) else ''}{key}": part for key, part in parts}
        if all(isinstance(part, np.ndarray) for part in arrays.values()):
            found |= arrays
    return found


def _remember(strategy: Strategy, memory: Arrays) -> None:
    for name in {key.partition(_OF)[0] for key in memory}:
        of_one = {key.partition(_OF)[2]: part for key, part in memory.items() if key.partition(_OF)[0] == name}
        listed = all(key.startswith("[]") for key in of_one)
        setattr(strategy, name, [of_one[f"[]{at}"] for at in range(len(of_one))] if listed else of_one)


def _whole(found: Result, done: Iterable[RoundRecord], last: int, arrays: ArrayRecord) -> Result:
    """With the rounds of earlier starts; centrally judged rounds of those are not known apart."""
    for rounds in (found.train_metrics_clientapp, found.evaluate_metrics_clientapp, found.evaluate_metrics_serverapp):
        moved = {number + last: metrics for number, metrics in rounds.items()}
        rounds.clear()
        rounds.update(moved)
    for record in done:
        if record.train_metrics:
            found.train_metrics_clientapp[record.number] = MetricRecord(dict(record.train_metrics))
        if record.metrics:
            found.evaluate_metrics_clientapp[record.number] = MetricRecord(dict(record.metrics))
    if not found.arrays:
        found.arrays = arrays
    return found
