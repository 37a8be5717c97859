"""faiss, imported where it is first needed: that takes a quarter of a second, and belongs in no process but this."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def faiss() -> Any:
    import faiss as library

    return library


def pointer(array: Any) -> Any:
    """What faiss' own functions take an array as; it must live as long as the call."""
    return faiss().swig_ptr(array)
