"""faiss, imported where it is first needed: that takes a quarter of a second, and belongs in no process but this."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

_threads = threading.local()


def faiss() -> Any:
    """For the thread that asks: what it calls takes this thread alone.

    Calls run side by side anyway, and one that waits for helpers of its own waits for as long as others keep the cores.
    """
    library = _imported()
    if not getattr(_threads, "alone", False):
        library.omp_set_num_threads(1)
        _threads.alone = True
    return library


def pointer(array: Any) -> Any:
    """What faiss' own functions take an array as; it must live as long as the call."""
    return _imported().swig_ptr(array)


@cache
def _imported() -> Any:
    import faiss as library

    return library
