"""What a stateful model carries from call to call, for as long as one stream lives. No clock: `now_s` is passed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nearmesh.errors import InvalidInput, SequenceLost
from nearmesh_agent.engines.base import Array
from nearmesh_agent.serving.replica import Replica

# A stream holds no more than this many sequences at a time: their state is the node's memory.
MAX_SEQUENCES = 256

SequenceId = int | str


@dataclass(frozen=True, slots=True)
class Step:
    """One request's place in its sequence."""

    id: SequenceId
    start: bool
    end: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """What the node holds of a sequence between two of its requests."""

    # The version that the state belongs to; another one could not go on with it. Held until the sequence is over.
    replica: Replica
    # By the name of the input that takes it.
    state: Mapping[str, Array]
    idle_s: float
    used_s: float


def step_of(request: Any) -> Step | None:
    """What a ModelInferRequest's parameters say about its sequence; None without one. Raises InvalidInput."""
    parameters = request.parameters
    if "sequence_id" not in parameters:
        return None
    given = parameters["sequence_id"]
    kind = given.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param", "string_param"):
        raise InvalidInput(f"parameter 'sequence_id' is {kind or 'empty'}; expected an integer or a string")
    value: SequenceId = getattr(given, kind)
    # Triton's word for "no sequence".
    if value in (0, ""):
        return None
    return Step(value, _flag(parameters, "sequence_start"), _flag(parameters, "sequence_end"))


def _flag(parameters: Any, name: str) -> bool:
    if name not in parameters:
        return False
    kind = parameters[name].WhichOneof("parameter_choice")
    if kind != "bool_param":
        raise InvalidInput(f"parameter {name!r} is {kind or 'empty'}; expected a bool")
    return bool(parameters[name].bool_param)


class StreamSequences:
    """The sequences of one stream. Each holds its version; `close` at the stream's end lets all of them go."""

    def __init__(self, *, most: int = MAX_SEQUENCES) -> None:
        self._most = most
        self._kept: dict[tuple[str, SequenceId], Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def holder(self, request: Any) -> Replica | None:
        """The version that the request's sequence began with, though another may serve by now.

        None at a sequence's start, outside a sequence, and when it is not here.
        """
        model = request.model_name
        if not any(model == name for name, _ in self._kept):
            return None
        step = step_of(request)
        kept = self._kept.get((model, step.id)) if step and not step.start else None
        return kept.replica if kept else None

    def begin(self, model: str, step: Step, *, now_s: float) -> Kept | None:
        """What a request goes on with; None at its sequence's start, where all state is zeros.

        Raises SequenceLost if the sequence is not here, InvalidInput if it would be one too many.
        """
        self._expire(now_s)
        if step.start:
            # A sequence started anew forgets what it was, also if this very request should fail.
            self._drop((model, step.id))
            self._check_room(step)
            return None
        kept = self._kept.get((model, step.id))
        if kept is None:
            raise SequenceLost(
                f"sequence {step.id!r} of {model!r} has no state on this stream: it was never started here, has ended "
                "or was silent too long; start it again with sequence_start"
            )
        return kept

    def advance(self, replica: Replica, step: Step, outputs: Mapping[str, Array], *, now_s: float) -> None:
        """Takes in the state that an answered request left. Without it, a failed request may simply be sent again."""
        sequence = replica.package.sequence
        assert sequence is not None
        self._drop((replica.name, step.id))
        if not step.end:
            state = {state.input: outputs[state.output] for state in sequence.state}
            replica.holds.take()
            self._kept[replica.name, step.id] = Kept(replica, state, sequence.idle_s, now_s)

    def close(self) -> None:
        """Forgets all of them."""
        for key in list(self._kept):
            self._drop(key)

    def _drop(self, key: tuple[str, SequenceId]) -> None:
        kept = self._kept.pop(key, None)
        if kept:
            kept.replica.holds.give_back()

    def _check_room(self, step: Step) -> None:
        if len(self._kept) >= self._most:
            raise InvalidInput(
                f"sequence {step.id!r} would be number {len(self._kept) + 1} on this stream, expected {self._most} "
                "at most; end some with sequence_end, or open another stream"
            )

    def _expire(self, now_s: float) -> None:
        for key in [key for key, kept in self._kept.items() if kept.used_s + kept.idle_s < now_s]:
            self._drop(key)
