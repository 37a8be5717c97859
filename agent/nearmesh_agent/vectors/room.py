"""How much memory the rows of writes that wait for the disk may take, over all collections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nearmesh.errors import Overloaded


class Room:
    """Of the event loop's own thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._taken_bytes = 0

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
        """For as long as a write waits. One that is larger than all the room is let in alone. Raises Overloaded."""
        if self._taken_bytes and self._taken_bytes + size_bytes > self._most_bytes:
            raise Overloaded(
                f"writes of {self._taken_bytes} bytes wait for the disk, and {size_bytes} more are above the limit of "
                f"{self._most_bytes}; come again in a moment",
                retry_after_ms=200,
            )
        self._taken_bytes += size_bytes
        try:
            yield
        finally:
            self._taken_bytes -= size_bytes
