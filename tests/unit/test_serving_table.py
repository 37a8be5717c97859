"""Which versions are on the node, and which of them serves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.table import ReplicaTable

from nearmesh.errors import NotFound, NotReady
from tests.gated_engine import Gate
from tests.tiny_models import package, spec

PACKAGE = package("doubler", [spec("x", "FP32", -1)], [spec("y", "FP32", -1)])


async def table_of(*names):
    replicas = [
        Replica(replace(PACKAGE, name=name, version=version), f"sha256:{name}{version}", make=Gate)
        for name, version in names
    ]
    return ReplicaTable(), replicas


async def test_table_swaps():
    table, (old, new) = await table_of(("reader", "1"), ("reader", "2"))
    assert table.put(old) is None
    assert table.put(new) is old
    assert table.get("reader") is new and table.get("reader", "2") is new
    assert table.serving(new) and not table.serving(old)
    assert table.get("reader", "1") is old and table.by_digest(old.digest) is old
    assert table.remove(old.digest) is old
    assert table.remove(old.digest) is None
    assert table.by_digest(old.digest) is None and len(table) == 1
    assert table.get("reader") is new
    with pytest.raises(NotFound, match="model 'reader' has no version '1' on this node; it has '2'"):
        table.get("reader", "1")


async def test_table_names_what_it_has():
    table, (a, b) = await table_of(("reader", "1"), ("voice", "1"))
    with pytest.raises(NotFound, match="no model 'reader' on this node; it has none yet"):
        table.get("reader")
    table.put(a)
    table.put(b)
    with pytest.raises(NotFound, match="no model 'faces' on this node; it has 'reader', 'voice'"):
        table.get("faces")


async def test_table_knows_what_is_to_come():
    table, (replica,) = await table_of(("reader", "1"))
    table.expect("reader", "loading")
    with pytest.raises(NotReady, match="'reader' is loading on this node"):
        table.get("reader")
    table.put(replica)
    assert table.get("reader") is replica
    table.remove(replica.digest)
    table.forget("reader")
    with pytest.raises(NotFound):
        table.get("reader")
