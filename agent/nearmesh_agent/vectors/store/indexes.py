"""Kinds of index that an engine builds, and how each is built and asked; any other is refused before a row is in.

Milvus Lite takes every name and quietly builds nothing for those that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from nearmesh.errors import Unsupported
from nearmesh_agent.vectors.model import Table

Parameters = Mapping[str, int]

# Lists of an IVF index, and how many of them a search looks into: recall above 0.95 on clustered data.
_LISTS, _PROBED = 256, 32
# A product quantizer cuts vectors into parts of so many numbers each, where the dimension allows.
_PART = 4
# Of a graph, how far a search goes beside what it is asked for.
_EF = 128


def _nothing(_number: int) -> Parameters:
    return {}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind: parameters by which it is built, from the dimension, and by which it is asked, from k."""

    name: str
    build: Callable[[int], Parameters] = field(default=_nothing)
    search: Callable[[int], Parameters] = field(default=_nothing)


def _graph(_dimension: int) -> Parameters:
    return {"M": 16, "efConstruction": 200}


def _lists(_dimension: int) -> Parameters:
    return {"nlist": _LISTS}


def _parts(dimension: int) -> Parameters:
    return {"nlist": _LISTS, "m": dimension // _PART if dimension % _PART == 0 else 1, "nbits": 8}


def _ef(k: int) -> Parameters:
    return {"ef": max(_EF, 2 * k)}


def _probe(_k: int) -> Parameters:
    return {"nprobe": _PROBED}


def _reach(k: int) -> Parameters:
    return {"search_list": max(_EF, 2 * k)}


_HNSW = Kind("HNSW", _graph, _ef)
_IVF_FLAT, _IVF_SQ8 = Kind("IVF_FLAT", _lists, _probe), Kind("IVF_SQ8", _lists, _probe)
_ALL = (Kind("FLAT"), _HNSW, _IVF_FLAT, _IVF_SQ8)
# The first is what a collection gets that asks for none. Lite without an index is exact, and fast enough where our own
# index answers the searches.
LITE = (Kind(""), *_ALL, Kind("HNSW_SQ", _graph, _ef))
SERVER = (
    Kind("AUTOINDEX"),
    *_ALL,
    Kind("IVF_PQ", _parts, _probe),
    Kind("SCANN", _lists, _probe),
    Kind("DISKANN", search=_reach),
)


def chosen(table: Table, kinds: Collection[Kind], engine: str) -> Kind:
    """What is to be built for a table. Raises Unsupported."""
    known = {kind.name: kind for kind in kinds}
    if not table.index_type:
        return next(iter(kinds))
    found = known.get(table.index_type.upper())
    if found is None:
        names = ", ".join(sorted(name for name in known if name))
        raise Unsupported(f"index type {table.index_type!r} is not built by {engine}; take one of {names}, or none")
    return found
