"""Embedders by digest: what the node serves, what it loads beside that, and what it lets go."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from nearmesh_agent.serving.table import ReplicaTable
from nearmesh_agent.vectors.text.embedders import NodeEmbedders
from nearmesh_agent.vectors.text.pinned import FORGET_S, PinnedVersions

from nearmesh.errors import EngineFailure, InvalidInput, NotFound, NotReady
from tests import text_models
from tests.text_models import DIMENSION, embedder, embedder_package, replica_of, vector

OLD, NEW = "sha256:old", "sha256:new"


class Node:
    """A table, and what can be brought."""

    def __init__(self):
        self.table, self.brought, self.away = ReplicaTable(), [], None
        self.embedders = NodeEmbedders(self.table, self.bring)

    async def bring(self, model, digest):
        self.brought.append((model, digest))
        await asyncio.sleep(0)
        if self.away:
            raise self.away
        return await replica_of(embedder(), embedder_package(model), digest=digest)

    async def serve(self, digest, **more):
        replica = await replica_of(embedder(**more), embedder_package(), digest=digest)
        before = self.table.put(replica)
        if before:
            self.table.remove(before.digest)
            await before.close()


@pytest.fixture
async def node():
    made = Node()
    yield made
    await made.embedders.close()
    for replica in made.table:
        await replica.close()


async def test_the_version_that_serves_is_pinned(node):
    await node.serve(OLD)
    assert await node.embedders.pinned("embedder") == (OLD, DIMENSION)
    found = await node.embedders.embed("embedder", OLD, ["a b"], query=True)
    np.testing.assert_array_equal(found, [vector("a b")])
    assert node.brought == [] and not node.embedders.stale("embedder", OLD)


async def test_the_length_of_vectors_is_learned_where_the_package_says_nothing(node):
    replica = await replica_of(embedder(dimension=5), embedder_package(dimension=-1), digest=OLD)
    node.table.put(replica)
    assert await node.embedders.pinned("embedder") == (OLD, 5)


async def test_p4_vectors_of_the_old_version_are_asked_by_the_old_version(node):
    await node.serve(OLD)
    await node.embedders.keep([OLD])
    await node.serve(NEW)
    assert node.embedders.stale("embedder", OLD) and OLD in node.embedders.pins.digests
    found = await asyncio.gather(*(node.embedders.embed("embedder", OLD, ["a"], query=True) for _ in range(3)))
    assert len(found) == 3 and node.brought == [("embedder", OLD)], "all share one load"


async def test_p4_what_no_collection_needs_any_more_leaves_memory(node):
    await node.serve(NEW)
    await node.embedders.embed("embedder", OLD, ["a"])
    kept = node.embedders.pins._own[OLD]
    await node.embedders.keep([OLD])
    assert kept.active
    await node.embedders.keep([NEW])
    assert not kept.active and node.embedders.pins.digests == {NEW, OLD}, "on the disk it stays for a while"


async def test_what_the_node_serves_itself_is_not_kept_twice(node):
    await node.embedders.embed("embedder", OLD, ["a"])
    await node.serve(OLD)
    await node.embedders.keep([OLD])
    assert not node.embedders.pins._own
    await node.embedders.embed("embedder", OLD, ["a"])
    assert len(node.brought) == 1


async def test_p10_one_that_hangs_is_loaded_anew(node):
    await node.embedders.embed("embedder", OLD, ["a"])
    await node.embedders.pins._own[OLD].give_up("it hangs")
    assert (await node.embedders.embed("embedder", OLD, ["a"])).shape == (1, DIMENSION) and len(node.brought) == 2


async def test_after_a_restart_it_is_known_what_has_to_stay(node, tmp_path):
    path = tmp_path / "pinned.json"
    now = 0.0
    first = PinnedVersions(node.table, node.bring, path, clock=lambda: now)
    await first.keep([OLD, ""])
    assert PinnedVersions(node.table, node.bring, path).digests == {OLD}
    now = FORGET_S - 1
    await first.keep([NEW])
    assert PinnedVersions(node.table, node.bring, path).digests == {OLD, NEW}
    now = FORGET_S + 1
    await first.keep([NEW])
    assert PinnedVersions(node.table, node.bring, path).digests == {NEW}
    path.unlink()
    path.mkdir()
    await first.keep([OLD, NEW])
    assert first.digests == {OLD, NEW}, "a disk that fails ends nothing"
    path.rmdir()
    path.write_text("{")
    assert PinnedVersions(node.table, node.bring, path).digests == set()


async def test_a_version_that_cannot_be_had_is_told_with_the_remedy(node):
    node.away = NotFound("no such version")
    for _ in range(2):
        with pytest.raises(NotReady, match="cannot load: no such version; publish that version again, or have"):
            await node.embedders.embed("embedder", OLD, ["a"], query=True)
    assert len(node.brought) == 2, "the next one tries again"


async def test_a_caller_who_leaves_takes_nobodys_load_along(node):
    first = asyncio.create_task(node.embedders.embed("embedder", OLD, ["a"]))
    await asyncio.sleep(0)
    second = asyncio.create_task(node.embedders.embed("embedder", OLD, ["a"]))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).shape == (1, DIMENSION) and len(node.brought) == 1


async def test_models_that_are_not_here_or_no_embedders(node):
    with pytest.raises(NotFound, match="embedder 'nothing' is no model of this node; deploy it to the node that keeps"):
        await node.embedders.pinned("nothing")
    node.table.put(await replica_of(text_models.reranker(), text_models.reranker_package()))
    with pytest.raises(InvalidInput, match="'reranker' is no embedder"):
        await node.embedders.pinned("reranker")
    assert await node.embedders.score("reranker", "a b", ["b c", "c"]) == [1, 0]
    with pytest.raises(NotFound, match="reranker 'nothing' is no model of this node"):
        await node.embedders.score("nothing", "a", ["b"])


async def test_an_embedder_that_fails_is_named(node):
    node.table.put(await replica_of(embedder(scale=0.0), embedder_package(), digest=OLD))
    with pytest.raises(EngineFailure, match=r"'embedder': .* a vector of zeros"):
        await node.embedders.embed("embedder", OLD, ["a"])
