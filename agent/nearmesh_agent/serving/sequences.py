"""What stateful models carry from call to call: of the sequences of one stream, or of a node's unary calls.

No clock: `now_s` is passed in. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from nearmesh.errors import InvalidInput, Overloaded, SequenceLost
from nearmesh_agent.engines.base import Array
from nearmesh_agent.serving.asked import SequenceId, Step
from nearmesh_agent.serving.replica import Replica

# A stream holds no more than this many sequences at a time; the package bounds those of the node.
MAX_SEQUENCES = 256

# And no more requests of one sequence wait for each other: they are held outside the engine's queue.
MAX_IN_LINE = 32

# Whose it is (callers of unary calls may choose the same ids), its model and its id.
Key = tuple[str, str, SequenceId]


@dataclass(frozen=True, slots=True)
class Spare:
    """What another version has of the same sequence, so that it can go on where the one that began it fails."""

    replica: Replica
    state: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Kept:
    """What the node holds of a sequence between two of its requests."""

    # The version that the state belongs to; another one could not go on with it. Held until the sequence is over.
    replica: Replica
    # By the name of the input that takes it.
    state: Mapping[str, Array]
    idle_s: float
    used_s: float
    # While the version is on trial. It is not held: if it goes, the sequence goes on without it.
    spare: Spare | None = None

    def over(self, now_s: float) -> bool:
        """It was silent too long."""
        return self.used_s + self.idle_s < now_s


class Sequences:
    """Each holds its version; `close` lets all of them go."""

    def __init__(self, *, most: int | None = MAX_SEQUENCES) -> None:
        """`most` at a time; None: as many as their packages allow."""
        self._most = most
        self._kept: dict[Key, Kept] = {}
        # Requests that wait for an earlier one of their sequence, or are being answered.
        self._turns: dict[Key, list[asyncio.Event]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def alive(self) -> bool:
        """One is kept here, or a request of one is under way."""
        return bool(self._kept or self._turns)

    @asynccontextmanager
    async def turn(self, key: Key) -> AsyncIterator[None]:
        """One request of a sequence at a time, in the order in which they asked."""
        line = self._turns.setdefault(key, [])
        if len(line) >= MAX_IN_LINE:
            raise Overloaded(f"{len(line)} requests of sequence {key[2]!r} wait for each other, as many as may")
        mine = asyncio.Event()
        line.append(mine)
        if line[0] is mine:
            mine.set()
        try:
            await mine.wait()
            yield
        finally:
            line.remove(mine)
            if line:
                line[0].set()
            else:
                del self._turns[key]

    def holder(self, key: Key, step: Step) -> Replica | None:
        """The version that the sequence began with, though another may serve by now; None at a start, or unknown."""
        kept = None if step.start else self._kept.get(key)
        return kept.replica if kept else None

    def spare(self, key: Key, *, now_s: float) -> Spare | None:
        """Who else could go on with a sequence that is not over."""
        kept = self._kept.get(key)
        return kept.spare if kept and not kept.over(now_s) else None

    def keep_spare(self, key: Key, replica: Replica, outputs: Mapping[str, Array] | None) -> None:
        """Takes in the state that a step left on the other version; None: it failed there, and cannot go on."""
        kept = self._kept.get(key)
        # Its last step leaves nothing.
        if kept:
            spare = None if outputs is None else Spare(replica, _state(replica, outputs))
            self._kept[key] = replace(kept, spare=spare)

    def hand_over(self, key: Key) -> None:
        """The other version goes on with the sequence, as if it had begun it."""
        kept = self._kept[key]
        assert kept.spare is not None
        other = kept.spare.replica
        other.holds.take()
        kept.replica.holds.give_back()
        self._kept[key] = replace(kept, replica=other, state=kept.spare.state, spare=None)

    def begin(self, key: Key, step: Step, replica: Replica, *, now_s: float) -> Kept | None:
        """What a request goes on with; None at its sequence's start, where all state is zeros.

        Raises SequenceLost if the sequence is not here, InvalidInput if it would be one too many on its stream,
        Overloaded if it would be one too many on the node.
        """
        kept = self._kept.get(key)
        if step.start or (kept and kept.over(now_s)):
            # A sequence started anew forgets what it was, also if this very request should fail.
            self._drop(key)
            kept = None
        if step.start:
            self.expire(now_s)
            self._check_room(key, replica)
            return None
        if kept is None:
            raise SequenceLost(
                f"sequence {step.id!r} of {replica.name!r} has no state here: it was never started, has ended, was "
                "silent too long, or began on another node or stream; start it again with sequence_start"
            )
        # Silence is counted from requests, also from those that fail.
        kept = self._kept[key] = replace(kept, used_s=now_s)
        return kept

    def advance(self, key: Key, step: Step, replica: Replica, outputs: Mapping[str, Array], *, now_s: float) -> None:
        """Takes in the state that an answered request left. Without it, a failed request may simply be sent again."""
        sequence = replica.package.sequence
        assert sequence is not None
        self._drop(key)
        if not step.end:
            replica.holds.take()
            self._kept[key] = Kept(replica, _state(replica, outputs), sequence.idle_s, now_s)

    def expire(self, now_s: float) -> None:
        """Forgets those that were silent too long; not while a request of theirs waits or is computed."""
        for key in [key for key, kept in self._kept.items() if kept.over(now_s) and key not in self._turns]:
            self._drop(key)

    def close(self) -> None:
        """Forgets all of them."""
        for key in list(self._kept):
            self._drop(key)

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key, None)
        if kept:
            kept.replica.holds.give_back()

    def _check_room(self, key: Key, replica: Replica) -> None:
        if self._most is not None and len(self._kept) >= self._most:
            raise InvalidInput(
                f"sequence {key[2]!r} would be number {len(self._kept) + 1} on this stream, expected {self._most} "
                "at most; end some with sequence_end, or open another stream"
            )
        sequence = replica.package.sequence
        # The step under way holds the version as well.
        if sequence and len(replica.holds) > sequence.most:
            raise Overloaded(
                f"{sequence.most} sequences of {replica.name!r} are on this node, as many as may; try another node",
                retry_after_ms=round(sequence.idle_s * 1000),
            )


def _state(replica: Replica, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the next step goes on from, by the inputs that take it."""
    states = replica.package.sequence.state if replica.package.sequence else ()
    # Copied: a share of a batch would keep the whole batch's state in memory.
    return {state.input: outputs[state.output].copy() for state in states}
