"""Who has taken which changes of a collection: how far behind each site is, and a receipt for every delete.

A node acknowledges a number when everything up to it is on its disk. When it passes deletes, that is written down with
the time, and stays: it proves that the node knew of them then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nearmesh_agent.vectors.across.clock import seconds
from nearmesh_agent.vectors.across.ledger import NodeLedger

# Changes that a site lacks are counted up to here, so that one that is away for long costs no more to look at.
MOST_LAG = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How far behind a node is."""

    node: str
    site: str
    # The last that it has, and when it said so, seconds since the epoch.
    acknowledged: int = 0
    at_s: float = 0.0
    # Changes that it lacks, and when the oldest of them was made; 0 where it lacks none.
    rows: int = 0
    oldest_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """That a node has a delete on its disk."""

    site: str
    node: str
    # Since the epoch, seconds; 0: not yet.
    at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Of one delete."""

    id: str
    change: int
    deleted_at_s: float
    by: Sequence[Acknowledgement]


class Receipts:
    """Of one collection, over its ledger's tables."""

    def __init__(self, ledger: NodeLedger, identity: str, *, node: str, site: str) -> None:
        self._ledger = ledger
        self._identity = identity
        self._tables = ledger.tables
        self._node, self._site = node, site

    def acknowledged(self, node: str, site: str, number: int, now_s: float) -> None:
        """A node has everything up to a number, which is less than before where it lost its disk."""
        number = min(number, self._ledger.last(self._identity))
        with self._tables.use() as tables:
            key = self._key
            before = tables.one("select number from acknowledged where collection = ? and node = ?", key, node)
            tables.run("insert or replace into acknowledged values (?, ?, ?, ?, ?)", key, node, site, number, now_s)
            proves = "select 1 from tombstones where collection = ? and number > ? and number <= ? limit 1"
            proven = tables.one(proves, key, before[0] if before else 0, number)
            if proven:
                tables.run("insert or ignore into receipts values (?, ?, ?, ?, ?)", key, node, number, site, now_s)
        if proven or not before:
            tables.commit()

    @property
    def _key(self) -> int:
        return self._ledger.key(self._identity)

    def number(self, node: str) -> int:
        """Up to which a node had everything when it said so last; 0 where it never has."""
        with self._tables.use() as tables:
            found = tables.one("select number from acknowledged where collection = ? and node = ?", self._key, node)
            return int(found[0]) if found else 0

    def lags(self) -> list[Lag]:
        """Of every node that has ever asked, by site."""
        with self._tables.use() as tables:
            found = tables.all(
                "select node, site, number, at_s from acknowledged where collection = ? order by site, node", self._key
            )
            return [self._lag(*one) for one in found]

    def _lag(self, node: str, site: str, number: int, at_s: float) -> Lag:
        lacks = "from changes where collection = ? and number > ? and source != ? order by number limit ?"
        values = (self._key, number, node)
        rows = self._tables.one(f"select count(*) from (select 1 {lacks})", *values, MOST_LAG)[0]
        oldest = self._tables.one(f"select at_s {lacks}", *values, 1)
        return Lag(
            node=node, site=site, acknowledged=number, at_s=at_s, rows=rows, oldest_s=oldest[0] if oldest else 0.0
        )

    def of(self, *, id: str = "", before: int = 0, most: int = 100) -> list[Receipt]:
        """Of one delete, or of the last ones, newest first, from before a change's number on."""
        with self._tables.use() as tables:
            stones = tables.all(
                "select id, number, deleted, at_s, source, site from tombstones where collection = ? "
                "and (? = '' or id = ?) and (? = 0 or number < ?) order by number desc limit ?",
                *(self._key, id, id, before, before, most),
            )
            nodes = tables.all(
                "select node, site from acknowledged where collection = ? order by site, node", self._key
            )
            return [self._receipt(stone, nodes) for stone in stones]

    def _receipt(self, stone: tuple[str, int, int, float, str, str], nodes: list[tuple[str, str]]) -> Receipt:
        id, number, deleted, at_s, source, site = stone
        by = [Acknowledgement(site=self._site, node=self._node, at_s=at_s)]
        # Who told of it knew of it.
        by += [Acknowledgement(site=site, node=source, at_s=at_s)] if source else []
        by += [
            Acknowledgement(site=where, node=node, at_s=self._since_s(node, number))
            for node, where in nodes
            if node != source
        ]
        return Receipt(id=id, change=number, deleted_at_s=seconds(deleted), by=by)

    def _since_s(self, node: str, number: int) -> float:
        found = self._tables.one(
            "select min(at_s) from receipts where collection = ? and node = ? and number >= ?", self._key, node, number
        )
        return float(found[0] or 0.0)

    def everybody_has(self, sites: Sequence[str]) -> int:
        """Up to which number all nodes of these sites, and those of this site that follow it, have what was changed;
        0 where a site has never asked.
        """
        behind = [lag for lag in self.lags() if lag.site in (self._site, *sites)]
        if any(all(lag.site != site for lag in behind) for site in sites):
            return 0
        return min((lag.acknowledged for lag in behind), default=self._ledger.last(self._identity))
