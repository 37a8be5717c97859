"""What to read next, and from whom: the decisions of one transfer. No sockets, no clock.

A node of the same site that has all of the version gives whatever is missing. Nodes of the site that are pulling it too
share out what has to come over the WAN: each stretch belongs to one of them (the highest hash of node and stretch), who
reads it from far away; the others wait for it there. A node that fails or is too slow loses its share to those who are
next in line, and comes back into line later. What is one's own comes from a node of the region that has it all, else
from the registry.

Nodes may see the site differently for a moment. Nobody waits in a circle all the same: each node counts itself, so
whoever waits for another one waits for a higher hash.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nearmesh_agent.store.pieces import Pieces

# Asked for in one go: long enough that a round trip between two requests is little beside it.
MOST_BYTES = 8 * 1024 * 1024
# A source that fails is left alone for so long, twice that after the next failure, up to the second.
BACKOFF_S = (0.1, 5.0)
# One that is busy is asked again after so long, where it does not say.
BUSY_S = 0.3
# A node that should have brought its share and did not loses it for so long.
SLOW_S = 15.0
# While nodes of the site have it and are too busy to give any, the WAN is left alone for so long.
STARVED_S = 3.0


class Tier(enum.IntEnum):
    """How far away a source is."""

    SITE = 0
    REGION = 1
    REGISTRY = 2


@dataclass(slots=True)
class Standing:
    """One source, and how it has done."""

    name: str
    tier: Tier
    # It has all of the version; of a node of the site that has not, `here` is what it said that it has: by blob the
    # first byte and the end of each range.
    whole: bool
    # Reads at a time.
    slots: int
    here: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    running: int = 0
    failures: int = 0
    # Not asked before; `busy` in that it keeps its share meanwhile.
    away_until_s: float = 0.0
    busy_until_s: float = 0.0
    # It sent bytes that were wrong.
    lied: bool = False

    def usable(self, now_s: float) -> bool:
        return not self.lied and now_s >= self.away_until_s

    def has(self, digest: str, start: int, end: int) -> bool:
        return any(first <= start and end <= last for first, last in self.here.get(digest, ()))


@dataclass(frozen=True, slots=True)
class Job:
    """Chunks of one blob that one source is asked for."""

    pieces: Pieces
    first: int
    end: int
    source: str
    # They are on their way to the source.
    wait: bool

    @property
    def offset(self) -> int:
        return self.pieces.chunks[self.first].offset

    @property
    def size_bytes(self) -> int:
        return self.pieces.chunks[self.end - 1].end - self.offset


class Planner:
    """Of one transfer. Blobs are taken in the order given."""

    def __init__(self, me: str, blobs: Iterable[Pieces]) -> None:
        """`me` is this node's id."""
        self._me = me
        self._blobs = list(blobs)
        self._sources: dict[str, Standing] = {}
        # Those who share, and by blob and stretch whose it is among them.
        self._sharers: tuple[str, ...] = (me,)
        self._owners: dict[tuple[str, int], str] = {}
        # When something arrived last; before that, when somebody was asked first.
        self._fed_s: float | None = None

    @property
    def complete(self) -> bool:
        return not any(pieces.left for pieces in self._blobs)

    def left_bytes(self) -> int:
        return sum(pieces.left_bytes for pieces in self._blobs)

    # Sources.

    def follow(self, sources: Iterable[Standing]) -> None:
        """The sources as they are now; what is known of those that were there before stays."""
        found: dict[str, Standing] = {}
        for source in sources:
            known = self._sources.get(source.name)
            if known:
                known.tier, known.whole, known.slots = source.tier, source.whole, source.slots
            found[source.name] = known or source
        self._sources = found

    def tell(self, source: str, here: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """What a node that is pulling too said that it has."""
        if source in self._sources:
            self._sources[source].here = here

    # What is next.

    def take(self, source: str, now_s: float) -> Job | None:
        """What to ask the source for now; nothing where it has no time, or there is nothing for it."""
        found = self._sources[source]
        if found.running >= found.slots or not found.usable(now_s) or now_s < found.busy_until_s:
            return None
        self._share_among(now_s)
        if found.tier is not Tier.SITE and not self._far_away(found, now_s):
            return None
        for pieces in self._blobs:
            job = self._of_blob(found, pieces)
            if job:
                pieces.coming(job.first, job.end)
                found.running += 1
                self._fed_s = now_s if self._fed_s is None else self._fed_s
                return job
        return None

    def _of_blob(self, source: Standing, pieces: Pieces) -> Job | None:
        if not pieces.left:
            return None
        most_bytes = self._most_bytes()
        for stretch in pieces.unfinished():
            first, end = pieces.starts[stretch], pieces.starts[stretch + 1]
            first, stop = pieces.missing_from(first, end, most_bytes)
            wait = self._asked(source, pieces, stretch) if first < stop else None
            if wait is None:
                continue
            size = pieces.chunks[stop - 1].end - pieces.chunks[first].offset
            while stop == end and size < most_bytes and stretch + 2 < len(pieces.starts):
                stretch, end = stretch + 1, pieces.starts[stretch + 2]
                more, until = pieces.missing_from(stop, end, most_bytes - size)
                if more != stop or more == until or self._asked(source, pieces, stretch) != wait:
                    break
                size += pieces.chunks[until - 1].end - pieces.chunks[more].offset
                stop = until
            return Job(pieces, first, stop, source.name, wait)
        return None

    def _asked(self, source: Standing, pieces: Pieces, stretch: int) -> bool | None:
        """Whether the source is asked to wait for the stretch; None where it is not its to bring."""
        if source.tier is Tier.SITE and source.whole:
            return False
        owner = self._owner(pieces.digest, stretch)
        if source.tier is not Tier.SITE:
            return False if owner == self._me else None
        chunks = pieces.chunks[pieces.starts[stretch] : pieces.starts[stretch + 1]]
        if source.has(pieces.digest, chunks[0].offset, chunks[-1].end):
            return False
        return True if owner == source.name else None

    def _most_bytes(self) -> int:
        """Smaller towards the end, so that all connections come to it together."""
        slots = sum(source.slots for source in self._sources.values())
        return min(MOST_BYTES, self.left_bytes() // (2 * max(slots, 1)))

    def _far_away(self, source: Standing, now_s: float) -> bool:
        """Whether the WAN may be used, and this source of it."""
        others = [other for other in self._sources.values() if other.whole and other.usable(now_s)]
        starved = self._fed_s is not None and now_s - self._fed_s > STARVED_S
        return starved or not any(other.tier < source.tier for other in others)

    # Shares.

    def _share_among(self, now_s: float) -> None:
        near = (s for s in self._sources.values() if s.tier is Tier.SITE and not s.whole and s.usable(now_s))
        found = tuple(sorted([self._me, *(source.name for source in near)]))
        if found != self._sharers:
            self._sharers = found
            self._owners.clear()

    def _owner(self, digest: str, stretch: int) -> str:
        key = digest, stretch
        if key not in self._owners:
            self._owners[key] = owner(self._sharers, digest, stretch)
        return self._owners[key]

    # What became of it.

    def arrived(self, job: Job, number: int, now_s: float) -> None:
        """A chunk is here, and right."""
        job.pieces.arrived(number)
        self._fed_s = now_s
        if source := self._sources.get(job.source):
            source.failures = 0

    def ended(self, job: Job) -> Standing | None:
        """The source is asked for nothing more by this job; what has not come is missing again."""
        job.pieces.given_up(job.first, job.end)
        source = self._sources.get(job.source)
        if source:
            source.running -= 1
        return source

    def busy(self, source: Standing, now_s: float, for_s: float | None) -> None:
        source.busy_until_s = now_s + (BUSY_S if for_s is None else for_s)

    def failed(self, source: Standing, now_s: float) -> None:
        """It cannot be reached, or broke off. What was under way at the same time is one failure."""
        if now_s < source.away_until_s:
            return
        source.failures += 1
        source.away_until_s = now_s + min(BACKOFF_S[0] * 2 ** (source.failures - 1), BACKOFF_S[1])
        source.here = {}

    def lacks(self, source: Standing, now_s: float) -> None:
        """A node does not have what it should have by now."""
        source.failures += 1
        source.away_until_s = now_s + SLOW_S
        source.here = {}

    def lied(self, source: Standing) -> None:
        """For the rest of this transfer nobody asks it again."""
        source.lied = True


def owner(sharers: Sequence[str], digest: str, stretch: int) -> str:
    """Who of the sharers fetches the stretch: rendezvous hashing, so that who goes leaves the others' shares alone."""
    return max(sharers, key=lambda node: (hashlib.sha256(f"{node} {digest} {stretch}".encode()).digest(), node))
