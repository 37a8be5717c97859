"""Whether the engine calls of this thread are a rehearsal: a version that is being proven answers from itself alone.

What a step reads from elsewhere, such as a collection, is not what a warm-up was recorded with.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_here = threading.local()


@contextmanager
def rehearsal() -> Iterator[None]:
    """Of what this thread does inside."""
    before, _here.rehearses = rehearsing(), True
    try:
        yield
    finally:
        _here.rehearses = before


def rehearsing() -> bool:
    """Of this thread."""
    return bool(getattr(_here, "rehearses", False))
