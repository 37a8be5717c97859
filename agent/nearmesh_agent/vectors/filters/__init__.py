"""Filters over a table's rows: a small language, read and checked here, answered on columns, on one row, or by Milvus.

    lang == "en" and (year >= 2020 or source like "handbook/%") and not id in ["a", "b"]

A row that lacks a field is taken by no comparison with it, whether that is negated or not, as in SQL.
"""

from nearmesh_agent.vectors.filters.reading import MAX_DEPTH, MAX_TERMS, MAX_VALUES, read
from nearmesh_agent.vectors.filters.tree import STANDING, Filter, value_of

__all__ = [
    "MAX_DEPTH",
    "MAX_TERMS",
    "MAX_VALUES",
    "STANDING",
    "Filter",
    "read",
    "value_of",
]
