"""The price feed: read again when it changed. What was read last and was good stays in force, also over a restart.

A feed that is wrong in any way changes no price: its state says what is wrong, and the log says it once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nearmesh.tls import write_private
from nearmesh_controlplane.prices.currencies import Currencies
from nearmesh_controlplane.prices.parser import BadFeed, parse
from nearmesh_controlplane.prices.sources import Source
from nearmesh_controlplane.prices.table import PriceTable

log = logging.getLogger(__name__)

# A file that is being written is looked at again so soon.
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedState:
    """The prices in force, and how the feed does."""

    # File or URL, for people; empty when there is no feed.
    source: str = ""
    table: PriceTable = field(default_factory=PriceTable)
    # When `table` was read, seconds since the epoch; 0: never.
    read_at_s: float = 0.0
    # Why what the feed says now is not in force.
    error: str = ""


class Feed:
    """One feed and its latest good reading, of which `kept` is a copy for the next start."""

    def __init__(
        self,
        source: Source,
        every_s: float,
        currencies: Currencies,
        kept: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._every_s = every_s
        self._currencies = currencies
        self._kept = kept
        self._clock = clock
        self.state = self._recalled()

    async def run(self, take: Callable[[FeedState], None]) -> None:
        """For ever; `take` is told of each new state."""
        while True:
            if await self.look():
                take(self.state)
            await asyncio.sleep(min(SETTLE_S, self._every_s) if self._source.restless else self._every_s)

    async def look(self) -> bool:
        """Reads the feed if it has something new. Whether `state` changed."""
        before = self.state
        try:
            data = await self._source.fetch()
            if data is not None:
                await self._take(data)
        except BadFeed as error:
            self._failed(error.message)
        return self.state != before

    async def _take(self, data: bytes) -> None:
        table = await asyncio.to_thread(parse, data, self._currencies)
        self.state = FeedState(source=self._source.name, table=table, read_at_s=self._clock())
        log.info("price feed source=%s prices=%d", self._source.name, len(table))
        try:
            await asyncio.to_thread(self._keep, data, self.state.read_at_s)
        except OSError as error:
            log.warning(
                "price feed source=%s: the copy for the next start was not written: %s", self.state.source, error
            )

    def _failed(self, why: str) -> None:
        if why != self.state.error:
            log.warning("price feed source=%s: %s; the prices read before stay in force", self._source.name, why)
            self.state = dataclasses.replace(self.state, error=why)

    # The copy for the next start, so that a feed which is away then costs no price.

    def _keep(self, data: bytes, read_at_s: float) -> None:
        self._kept.parent.mkdir(parents=True, exist_ok=True)
        kept = {"source": self._source.name, "read_at_s": read_at_s, "text": data.decode("utf-8")}
        write_private(self._kept, json.dumps(kept).encode())

    def _recalled(self) -> FeedState:
        """What was kept of this very source. Anything else there is of no use, and no reason not to start."""
        nothing = FeedState(source=self._source.name)
        try:
            kept = json.loads(self._kept.read_bytes())
            if kept["source"] != self._source.name:
                return nothing
            table = parse(kept["text"].encode(), self._currencies)
            return dataclasses.replace(nothing, table=table, read_at_s=float(kept["read_at_s"]))
        except FileNotFoundError:
            return nothing
        except (OSError, ValueError, KeyError, TypeError, AttributeError, BadFeed) as error:
            log.warning("price feed source=%s: the copy in %s is of no use: %s", self._source.name, self._kept, error)
            return nothing
