"""Which versions are on the node, and which of them serves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from nearmesh_agent.serving.replica import Replica
from nearmesh_agent.serving.table import ReplicaTable

from nearmesh.errors import NotFound, NotReady
from nearmesh.v1 import node_pb2 as pb
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


async def test_a_trial_is_beside_the_standing_version_and_changes_nothing_for_who_names_none():
    table, (old, new) = await table_of(("reader", "1"), ("reader", "2"))
    table.put(old)
    table.try_out(new, pb.Trial(share=0.5))
    assert new.on_trial and not old.on_trial
    assert table.get("reader") is old and table.standing("reader") is old
    assert table.get("reader", "2") is new and table.by_digest(new.digest) is new
    trial = table.trial_beside(old)
    assert trial.replica is new and [trial.requests.next() for _ in range(4)] == [False, True, False, True]
    assert table.trial_beside(new) is None
    # The same again, with other shares: what was due stays due.
    trial.requests.due()
    table.try_out(new, pb.Trial(share=0.5, mirror_share=1.0))
    assert table.trial_beside(old) is trial and trial.requests.next() and trial.mirrored.next()


async def test_a_trial_becomes_the_standing_version_in_one_step():
    table, (old, new) = await table_of(("reader", "1"), ("reader", "2"))
    table.put(old)
    table.try_out(new, pb.Trial(share=0.5))
    assert table.put(new) is old
    assert not new.on_trial and table.get("reader") is new and table.get("reader", "1") is old
    assert table.trial_beside(new) is None
    # And the other way round.
    table.try_out(old, pb.Trial(share=0.5))
    assert old.on_trial and table.trial_beside(new).replica is old


async def test_a_trial_that_is_taken_out_or_replaced_is_over():
    table, (old, new, newer) = await table_of(("reader", "1"), ("reader", "2"), ("reader", "3"))
    table.put(old)
    table.try_out(new, pb.Trial(share=0.5))
    table.try_out(newer, pb.Trial(share=0.5))
    assert table.trial_beside(old).replica is newer and not new.on_trial
    assert table.remove(newer.digest) is newer
    assert table.trial_beside(old) is None and not newer.on_trial
    with pytest.raises(NotFound, match="no version '3'"):
        table.get("reader", "3")


async def test_a_trial_alone_answers_nobody_who_names_no_version():
    table, (new,) = await table_of(("reader", "2"))
    table.try_out(new, pb.Trial(share=1.0))
    with pytest.raises(NotReady):
        table.get("reader")
    assert table.get("reader", "2") is new
