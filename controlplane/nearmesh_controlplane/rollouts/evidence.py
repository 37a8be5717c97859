"""What nodes counted of two versions since a rollout's step began. Pure: it hears reports, and keeps no clock.

Nodes count since a version was loaded, so a count that is smaller than before began anew: all of it is new. What a node
had counted when it was first heard of says nothing of this step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nearmesh.v1 import node_pb2 as pb
from nearmesh_controlplane.rollouts.views import View


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one version. `answered` has no mirrored requests, `failed` has, and so has `compared`, failed ones too."""

    answered: int = 0
    failed: int = 0
    compared: int = 0
    agreed: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.answered + other.answered,
            self.failed + other.failed,
            self.compared + other.compared,
            self.agreed + other.agreed,
        )

    def since(self, before: Counts) -> Counts:
        """What came to it, unless it began anew."""
        if self.answered < before.answered or self.failed < before.failed or self.compared < before.compared:
            return self
        return Counts(
            self.answered - before.answered,
            self.failed - before.failed,
            self.compared - before.compared,
            max(0, self.agreed - before.agreed),
        )

    @property
    def tried(self) -> int:
        """Requests that it was to answer, and mirrored ones; of those that failed, some did not agree, and are in it
        already."""
        return self.answered + self.compared + max(0, self.failed - (self.compared - self.agreed))


def counts_of(status: pb.ReplicaStatus) -> Counts:
    return Counts(status.answered, status.failed, status.compared, min(status.agreed, status.compared))


@dataclass(slots=True)
class _Book:
    """One version on one node."""

    last: Counts
    since: Counts = Counts()
    # Of all looks, the latest ones in a row in which it was slow, and the count at the last of them.
    slow: int = 0
    seen: int = -1

    def hear(self, now: Counts) -> None:
        self.since += now.since(self.last)
        self.last = now


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEvidence:
    """One node."""

    view: View
    new: Counts = Counts()
    old: Counts = Counts()
    # Of the standing version since it was loaded, as last heard.
    old_ever: Counts = Counts()
    # How many reports in a row said that the new version is too slow.
    slow: int = 0


@dataclass(slots=True)
class Evidence:
    """Of one rollout. `observe` at each look; what a step began with is forgotten when `step` is another."""

    _step: object = None
    # By node and whether it is of the new version.
    _books: dict[tuple[str, bool], _Book] = field(default_factory=dict)

    def observe(self, step: object, views: Iterable[View], slow: Iterable[str] = ()) -> None:
        """`slow` names the nodes on which the new version is too slow by what they say now."""
        if step != self._step:
            self._step = step
            for book in self._books.values():
                book.since, book.slow = Counts(), 0
        late = set(slow)
        for view in views:
            if not view.live:
                continue
            for new, status in ((True, view.new), (False, view.old)):
                if status.digest:
                    self._hear((view.node, new), counts_of(status))
            self._look(view.node, view.node in late)

    def _hear(self, key: tuple[str, bool], now: Counts) -> None:
        book = self._books.get(key)
        if book is None:
            self._books[key] = _Book(now)
        else:
            book.hear(now)

    def _look(self, node: str, slow: bool) -> None:
        book = self._books.get((node, True))
        if book is None:
            return
        if not slow:
            book.slow = 0
        elif book.last.tried != book.seen:
            # The same report again is no further finding.
            book.slow += 1
        book.seen = book.last.tried

    def nodes(self, views: Iterable[View]) -> list[NodeEvidence]:
        found = []
        for view in views:
            new, old = self._books.get((view.node, True)), self._books.get((view.node, False))
            found.append(
                NodeEvidence(
                    view=view,
                    new=new.since if new else Counts(),
                    old=old.since if old else Counts(),
                    old_ever=old.last if old else Counts(),
                    slow=new.slow if new else 0,
                )
            )
        return found
