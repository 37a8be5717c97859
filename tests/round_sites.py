"""Sites that train a softmax regression on their part of scikit-learn's digits, and such that send something else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from nearmesh_controlplane.rounds.layout import record_of
from nearmesh_controlplane.runs.folder import Arrays

from nearmesh.round_messages import ARRAYS, BASE, CONFIG, METRICS, NUM_EXAMPLES, SERVER_ROUND, SETTING, digest

DIGITS = 10
PARAMETERS = ("weight", "bias")
INITIAL: Arrays = {"weight": np.zeros((64, DIGITS), np.float32), "bias": np.zeros(DIGITS, np.float32)}

# What a site sends instead of what it trained: by (trained, base, round).
Poison = Callable[[Arrays, Arrays, int], Arrays]


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(7).permutation(len(found.target))
    return (found.data[order] / 16).astype(np.float64), found.target[order]


def part(of: int, at: int, lacks: int = 1) -> np.ndarray:
    """Rows of one of so many sites; each lacks some digits."""
    targets = digits()[1]
    mine = np.arange(len(targets)) % of == at
    for digit in range(lacks):
        mine &= targets != (at * lacks + digit) % DIGITS
    return np.flatnonzero(mine)


def outputs(arrays: Arrays, inputs: np.ndarray) -> np.ndarray:
    return inputs @ arrays["weight"].astype(np.float64) + arrays["bias"]


def accuracy(arrays: Arrays, rows: np.ndarray) -> float:
    inputs, targets = digits()
    return float((outputs(arrays, inputs[rows]).argmax(1) == targets[rows]).mean())


def train(arrays: Arrays, rows: np.ndarray, steps: int = 10, rate: float = 0.5) -> Arrays:
    inputs, targets = digits()[0][rows], np.eye(DIGITS)[digits()[1][rows]]
    weight, bias = arrays["weight"].astype(np.float64), arrays["bias"].astype(np.float64)
    for _ in range(steps):
        scores = inputs @ weight + bias
        chances = np.exp(scores - scores.max(1, keepdims=True))
        error = chances / chances.sum(1, keepdims=True) - targets
        weight = weight - rate * inputs.T @ error / len(rows)
        bias = bias - rate * error.mean(0)
    return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


@dataclass
class DigitsSite:
    """Every fifth of its rows is held back."""

    rows: np.ndarray
    poison: Poison | None = None
    # Instead of the digest of what it was sent.
    base: str = ""
    seen: list[tuple[str, dict[str, Any]]] | None = None

    def __call__(self, message: Message) -> RecordDict:
        config = dict(message.content.config_records[CONFIG])
        if self.seen is not None:
            self.seen.append((message.metadata.message_type, config))
        arrays = {name: array.numpy() for name, array in message.content.array_records[ARRAYS].items()}
        held_back = np.arange(len(self.rows)) % 5 == 0
        if message.metadata.message_type != MessageType.TRAIN:
            rows = self.rows[held_back]
            return RecordDict(
                {
                    METRICS: MetricRecord(
                        {NUM_EXAMPLES: len(rows), "accuracy": accuracy(arrays, rows), "difference": 0.0}
                    )
                }
            )
        rows = self.rows[~held_back]
        number = int(config[SERVER_ROUND])
        trained = train(arrays, rows, steps=int(config.get(f"{SETTING}steps", 10)))
        sent = self.poison(trained, arrays, number) if self.poison else trained
        echo = ConfigRecord({SERVER_ROUND: number, BASE: self.base or digest(arrays)})
        metrics = MetricRecord({NUM_EXAMPLES: len(rows), "train-s": 1.5, "yielded-s": 0.25, "accuracy": 0.5})
        return RecordDict({ARRAYS: record_of(sent), METRICS: metrics, CONFIG: echo})


def scaled(trained: Arrays, base: Arrays, _number: int) -> Arrays:
    return {name: base[name] + 20 * (trained[name] - base[name]) for name in trained}


def flipped(trained: Arrays, base: Arrays, _number: int) -> Arrays:
    return {name: base[name] - 4 * (trained[name] - base[name]) for name in trained}


def not_numbers(trained: Arrays, _base: Arrays, _number: int) -> Arrays:
    return {name: np.full_like(array, np.nan) for name, array in trained.items()}


def stale(_trained: Arrays, _base: Arrays, _number: int) -> Arrays:
    """What the run began from, as if it were of this round."""
    return INITIAL
