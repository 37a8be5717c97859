"""Which questions a node hands on to its own process alone, and which go to others too."""

from __future__ import annotations

from typing import Any

import pytest
from nearmesh_agent.vectors.across import peer
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.across.reach import Reach
from nearmesh_agent.vectors.config import VectorsConfig
from nearmesh_agent.vectors.front import Front

from nearmesh.errors import PermissionDenied
from nearmesh.rpc import Identity, answering
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1.node_pb2 import VectorNode

REF = pb.CollectionRef(name="docs")
NODES = [VectorNode(node="b", site="right", region="us")]


class Process:
    """What keeps the vectors of node a: one row, in a collection that is bound to regions."""

    def __init__(self, *regions: str) -> None:
        self._regions = regions
        self.asked: list[tuple[str, str]] = []

    async def call(self, method: str, message: Any, *, reach: str, timeout_s: float | None, more: Any = ()) -> bytes:
        name = method.rpartition("/")[2]
        self.asked.append((name, reach))
        if name == "GetCollection":
            return pb.Collection(collection=REF, regions=self._regions).SerializeToString()
        hit = pb.Hit(row=pb.Row(id="here"), score=0.5)
        return {"Search": pb.SearchResponse, "Retrieve": pb.RetrieveResponse}[name](hits=[hit]).SerializeToString()


class Links:
    """To node b, which has one row."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.nodes = NODES
        self.reach = Reach(Here(node="a", site="left", region="eu"), lambda: self.nodes, self._there, self._deleted)

    async def _deleted(self, identity: str, ids: Any) -> Any:
        return ()

    async def _there(self, node: VectorNode, request: Any, namespace: str, within_s: float) -> Any:
        self.asked.append(namespace)
        kind = pb.SearchResponse if isinstance(request, pb.SearchRequest) else pb.RetrieveResponse
        return kind(hits=[pb.Hit(row=pb.Row(id="there"), score=0.9)])

    def asking(self, node: str) -> Here:
        return peer.asking(node, self.nodes)


class Context:
    """A call; of a node, on behalf of a namespace."""

    def __init__(self, namespace: str = "") -> None:
        self._namespace = namespace

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("nearmesh-namespace", self._namespace)] if self._namespace else []

    def time_remaining(self) -> float:
        return 5.0


class Node:
    """Node a, as its callers find it."""

    def __init__(self, *regions: str) -> None:
        self.process, self.links = Process(*regions), Links()
        # Its embedder is asked for nothing: the questions are of words.
        self.front = Front(VectorsConfig(enabled=True), lambda: self.process, embedder=Embedder())  # type: ignore[arg-type, return-value]
        self.front.links = self.links  # type: ignore[assignment]

    async def ask(
        self, who: Identity, kind: str, scope: pb.Reach.Scope = pb.Reach.SCOPE_NODE, **more: Any
    ) -> list[str]:
        answering(who)
        context = Context("team" if who.role == "node" else "")
        if kind == "Search":
            search = pb.SearchRequest(collection=REF, reach=pb.Reach(scope=scope), **more)
            found = pb.SearchResponse.FromString(await self.front.Search(search.SerializeToString(), context))
            return [hit.row.id for hit in found.hits]
        words = pb.RetrieveRequest.MODE_LEXICAL
        retrieve = pb.RetrieveRequest(collection=REF, text="?", mode=words, reach=pb.Reach(scope=scope), **more)
        passages = pb.RetrieveResponse.FromString(await self.front.Retrieve(retrieve.SerializeToString(), context))
        return [hit.row.id for hit in passages.hits]


class Embedder:
    async def keep(self, digests: Any) -> None: ...


ANN, B, STRANGER = Identity("ann", "client"), Identity("b", "node"), Identity("stranger", "node")
BOTH = pytest.mark.parametrize("kind", ["Search", "Retrieve"])


@BOTH
async def test_a_question_goes_no_further_unless_it_is_told_to(kind: str) -> None:
    node = Node()
    assert await node.ask(ANN, kind) == ["here"]
    assert node.links.asked == []


@BOTH
async def test_one_that_travels_is_asked_in_the_callers_namespace_everywhere(kind: str) -> None:
    node = Node()
    ann = Identity("ann", "client", "team")
    assert await node.ask(ann, kind, pb.Reach.SCOPE_MESH) == ["there", "here"]
    assert node.links.asked == ["team"]
    assert {reach for name, reach in node.process.asked} == {"team"}


@BOTH
async def test_one_that_has_travelled_goes_no_further(kind: str) -> None:
    node = Node()
    assert await node.ask(B, kind, pb.Reach.SCOPE_MESH) == ["here"]
    assert node.links.asked == []


@BOTH
async def test_p9_a_collection_is_not_asked_from_regions_that_it_leaves_out(kind: str) -> None:
    assert await Node("eu", "us").ask(B, kind) == ["here"]
    node = Node("eu")
    with pytest.raises(PermissionDenied, match="residency: collection 'docs' may be asked from eu, not from 'us'"):
        await node.ask(B, kind)
    assert [name for name, _ in node.process.asked] == ["GetCollection"]


@BOTH
async def test_p9_nothing_is_answered_to_a_node_that_a_rule_bars_or_nobody_knows(kind: str) -> None:
    node = Node()
    with pytest.raises(PermissionDenied, match="'stranger' is not among those that keep vectors"):
        await node.ask(STRANGER, kind)
    node.links.nodes = [VectorNode(node="b", site="right", region="us", barred=True)]
    with pytest.raises(PermissionDenied, match="residency: what is of this region stays out of region 'us'"):
        await node.ask(B, kind)
    assert node.process.asked == []


@BOTH
async def test_p9_regions_that_were_narrowed_bind_at_once(kind: str) -> None:
    node = Node()
    assert await node.ask(B, kind) == ["here"]
    node.process._regions = ("eu",)
    with pytest.raises(PermissionDenied, match="residency"):
        await node.ask(B, kind)
