"""Engine calls that fail one after the other: the engine's fault, or that of somebody's requests."""

from __future__ import annotations

import logging
from types import TracebackType

from nearmesh.errors import EngineFailure

log = logging.getLogger(__name__)

# So many may be the engine's fault; a probe can tell.
FAILURES_IN_ROW = 3


class Failures:
    """Of one replica. As a context manager it holds one request: EngineFailure counts, an answer ends the row."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.in_row = 0

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.in_row = 0
        elif isinstance(error, EngineFailure):
            self.in_row += 1
            log.debug("an engine call failed model=%s: %s", self._model, error.message)

    @property
    def suspect(self) -> bool:
        """So many that a probe should tell whose fault it is."""
        return self.in_row >= FAILURES_IN_ROW
