"""The table's strategies as Flower's: one model of the sites' updates, and what is remembered until the next round.

Flower's strategy objects do the arithmetic, in doubles, and are given what has been checked and clipped before. A
robust strategy takes each site alike: what a site says of its number of examples gives it no weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
)

from nearmesh.errors import InvalidInput
from nearmesh.round_messages import ARRAYS, METRICS, NUM_EXAMPLES
from nearmesh.strategies import options, strategy, trimmed
from nearmesh_controlplane.rounds.layout import Layout, Vector, record_of
from nearmesh_controlplane.runs.folder import Arrays

_CLASSES: Mapping[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "fedavgm": FedAvgM,
    "fedmedian": FedMedian,
    "trimmed-mean": FedTrimmedAvg,
    "krum": Krum,
    "multi-krum": MultiKrum,
    "bulyan": Bulyan,
}
# Of the numbers, a trimmed mean leaves an honest site out in some. One that it leaves out in this part of what it could
# be is named.
_TRIMMED_PART = 0.8
# What is remembered of Flower's objects between rounds, by attribute: arrays by name, or a list in the names' order.
_BY_NAME, _IN_ORDER = ("m_t", "v_t"), ("momentum_vector",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one site adds to a round."""

    node: str
    update: Vector
    examples: int


@dataclass(frozen=True, slots=True)
class Aggregated:
    vector: Vector
    # Nodes whose part the strategy did not use, with what it did.
    left_out: Mapping[str, str] = field(default_factory=dict)


class Aggregation:
    """One run's strategy."""

    def __init__(self, name: str, given: Mapping[str, float], layout: Layout) -> None:
        """Raises InvalidInput."""
        self._name = name
        self._table = strategy(name)
        self._options = options(name, given)
        self._layout = layout
        self._used: list[RecordDict] = []
        self._flower = self._make()

    def configure(self, number: int, base: Arrays, config: Mapping[str, Any], nodes: Collection[int]) -> RecordDict:
        """What the sites are sent to train from."""
        if isinstance(self._flower, FedAvgM):
            # It would go on from what it made itself, before rounding to the model's dtypes.
            self._flower.current_arrays = None
        messages = self._flower.configure_train(
            number,
            record_of(base),
            ConfigRecord(dict(config)),
            _Chosen(nodes),  # type: ignore[arg-type]
        )
        return next(iter(messages)).content

    @property
    def robust(self) -> bool:
        return self._table.robust

    def bears(self, sites: int) -> int:
        """Of so many sites, how many may send anything."""
        if not self.robust:
            return 0
        if "num-malicious-nodes" in self._options:
            return int(self._options["num-malicious-nodes"])
        return trimmed(self._options["beta"], sites) if "beta" in self._options else (sites - 1) // 2

    def aggregate(self, number: int, base: Arrays, parts: Sequence[Part], malicious: int = 0) -> Aggregated:
        """The next model; call `configure` before. Of those that may be malicious, so many may be among the parts.

        Raises InvalidInput for too few parts, or a step that overflows.
        """
        from_vector = self._layout.vector(base)
        self._fit(len(parts), malicious)
        replies = [self._reply(from_vector, part) for part in parts]
        contents = [reply.content for reply in replies]
        made, _ = self._flower.aggregate_train(number, replies)
        if made is None:
            raise InvalidInput(f"{self._name} makes no model of {len(parts)} answers")
        vector = self._layout.vector({name: array.numpy() for name, array in made.items()})
        if not self._fits(vector):
            raise InvalidInput(f"{self._name} made numbers that are not finite; try smaller steps, or other options")
        return Aggregated(vector, self._left_out(parts, contents))

    def state(self) -> Arrays:
        """To be remembered."""
        found: Arrays = {}
        for attribute in _BY_NAME:
            for name, array in (getattr(self._flower, attribute, None) or {}).items():
                found[f"{attribute}:{name}"] = array
        for attribute in _IN_ORDER:
            for name, array in zip(self._layout.shapes, getattr(self._flower, attribute, None) or [], strict=False):
                found[f"{attribute}:{name}"] = array
        return found

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """As of the round that is gone on from; nothing remembered: begins anew."""
        for attribute in (*_BY_NAME, *_IN_ORDER):
            if not hasattr(self._flower, attribute):
                continue
            found = {name: state.get(f"{attribute}:{name}") for name in self._layout.shapes}
            whole = all(array is not None for array in found.values())
            in_order = list(found.values()) if attribute in _IN_ORDER else found
            setattr(self._flower, attribute, in_order if whole else None)

    def _make(self) -> FedAvg:
        told: dict[str, Any] = {name.replace("-", "_"): value for name, value in self._options.items()}
        for option in self._table.options:
            if option.whole:
                told[option.name.replace("-", "_")] = int(self._options[option.name])
        # Who is asked is the loop's decision; Flower's own minimum would wait for others.
        fewest: dict[str, Any] = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
        return _CLASSES[self._name](**told, **fewest, train_metrics_aggr_fn=self._notes)

    def _notes(self, used: list[RecordDict], _weighted_by: str) -> MetricRecord:
        """Flower hands over those that it has chosen."""
        self._used = used
        return MetricRecord()

    def _fit(self, sites: int, malicious: int) -> None:
        """What Flower's object is told that depends on who has answered."""
        if isinstance(self._flower, FedTrimmedAvg):
            # Some, however many are known to be bad; what is left is a mean of numbers that others bear out. A quarter,
            # so that a rounding of doubles does not leave out one less.
            self._flower.beta = (trimmed(self._options["beta"], sites) + 0.25) / sites
        elif isinstance(self._flower, MultiKrum | Bulyan):
            self._flower.num_malicious_nodes = malicious
        if isinstance(self._flower, MultiKrum) and not isinstance(self._flower, Krum):
            wanted = int(self._options["num-nodes-to-select"]) or sites - malicious
            self._flower.num_nodes_to_select = max(1, min(wanted, sites))

    def _reply(self, base: Vector, part: Part) -> Message:
        arrays = record_of(self._layout.arrays(base + part.update, doubles=True))
        examples = 1 if self._table.robust else part.examples
        content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({NUM_EXAMPLES: examples})})
        return Message(content, 0, MessageType.TRAIN)

    def _fits(self, vector: Vector) -> bool:
        """Finite as the model's own dtypes, too."""
        with np.errstate(over="ignore"):
            return all(bool(np.isfinite(array).all()) for array in self._layout.arrays(vector).values())

    def _left_out(self, parts: Sequence[Part], contents: Sequence[RecordDict]) -> dict[str, str]:
        if isinstance(self._flower, FedTrimmedAvg):
            return self._trimmed(parts)
        used = {id(content) for content in self._used}
        return {
            part.node: f"left out by {self._name}"
            for part, content in zip(parts, contents, strict=True)
            if id(content) not in used
        }

    def _trimmed(self, parts: Sequence[Part]) -> dict[str, str]:
        each_end = trimmed(self._options["beta"], len(parts))
        ranks = np.argsort(np.argsort(np.stack([part.update for part in parts]), axis=0), axis=0)
        outside = ((ranks < each_end) | (ranks >= len(parts) - each_end)).mean(axis=1)
        usual = 2 * each_end / len(parts)
        return {
            part.node: f"trimmed-mean left out {share:.0%} of its numbers"
            for part, share in zip(parts, outside, strict=True)
            if each_end and share >= usual + _TRIMMED_PART * (1 - usual)
        }


class _Chosen:
    """Flower's strategies ask a grid for nodes and take all of them."""

    def __init__(self, nodes: Collection[int]) -> None:
        self._nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        return self._nodes
