"""A query that travels: whom it is for, what becomes of the answers, and who is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from nearmesh_agent.vectors.across import places
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.across.reach import Reach, check_asked_from

from nearmesh.errors import DeadlineExceeded, InvalidInput, MeshError, NotFound, PermissionDenied, Unreachable
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1.node_pb2 import VectorNode

HERE = Here(node="a", site="left", region="eu")
NODES = [
    VectorNode(node="a", site="left", region="eu"),
    VectorNode(node="a2", site="left", region="eu"),
    VectorNode(node="b", site="right", region="eu"),
    VectorNode(node="c", site="far", region="us"),
]
SITE, REGION, MESH = pb.Reach.SCOPE_SITE, pb.Reach.SCOPE_REGION, pb.Reach.SCOPE_MESH


def hit(id: str, score: float, **more: Any) -> pb.Hit:
    return pb.Hit(row=pb.Row(id=id), score=score, **more)


def answer(*hits: pb.Hit, identity: str = "", metric: pb.Metric = pb.METRIC_COSINE) -> pb.SearchResponse:
    return pb.SearchResponse(hits=hits, identity=identity, metric=metric, way="index")


class Mesh:
    """What each node says, and whom a query went to."""

    def __init__(self, **said: Any) -> None:
        self.said = said
        self.asked: list[tuple[str, str]] = []
        self.nodes = NODES
        self.deleted: dict[str, list[str]] = {}

    async def there(self, node: VectorNode, request: Any, namespace: str, within_s: float) -> Any:
        self.asked.append((node.node, namespace))
        assert not request.HasField("reach")
        assert request.collection.namespace == namespace
        return await _said(self.said.get(node.node, answer()))

    async def search(self, *, k: int = 10, left_s: float | None = None, **reach: Any) -> pb.SearchResponse:
        request = pb.SearchRequest(collection=pb.CollectionRef(name="docs"), k=k, reach=pb.Reach(**reach))
        reach = Reach(HERE, lambda: self.nodes, self.there, self._deleted)
        return await reach.search(request, "team", self._own, left_s)

    async def _deleted(self, identity: str, ids: Sequence[str]) -> Sequence[str]:
        return [one for one in self.deleted.get(identity, ()) if one in ids]

    async def _own(self, request: Any) -> Any:
        return await self.there(VectorNode(node="a"), request, "team", 1.0)


async def _said(what: Any) -> Any:
    if isinstance(what, MeshError):
        raise what
    return await what() if isinstance(what, Callable) else what  # type: ignore[arg-type]


def found(response: pb.SearchResponse) -> list[tuple[str, str]]:
    return [(one.row.id, one.node) for one in response.hits]


def missing(response: pb.SearchResponse) -> dict[str, str]:
    return {one.node: one.missing for one in response.contributions if one.missing}


@pytest.mark.parametrize(
    ("reach", "nodes"),
    [
        ({}, ["a"]),
        ({"scope": SITE}, ["a", "a2"]),
        ({"scope": SITE, "name": "far"}, ["c"]),
        ({"scope": REGION}, ["a", "a2", "b"]),
        ({"scope": REGION, "name": "us"}, ["c"]),
        ({"scope": MESH}, ["a", "a2", "b", "c"]),
    ],
)
def test_whom_a_query_is_for(reach: dict[str, Any], nodes: list[str]) -> None:
    assert [node.node for node in places.asked(pb.Reach(**reach), HERE, NODES)] == nodes


def test_a_place_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidInput, match="site 'nowhere'; there are far, left, right"):
        places.asked(pb.Reach(scope=SITE, name="nowhere"), HERE, NODES)
    # The control plane may not have said anything yet.
    assert [node.node for node in places.asked(pb.Reach(scope=MESH), HERE, [])] == ["a"]


async def test_the_best_of_all_nodes_come_first() -> None:
    mesh = Mesh(a=answer(hit("1", 0.9), hit("2", 0.2)), b=answer(hit("3", 0.5)), c=answer(hit("1", 0.7)))
    response = await mesh.search(scope=MESH, k=3)
    # Without an identity they are of different collections.
    assert found(response) == [("1", "a"), ("1", "c"), ("3", "b")]
    assert {one.node: one.hits for one in response.contributions} == {"a": 1, "a2": 0, "b": 1, "c": 1}
    assert [one.site for one in response.hits] == ["left", "far", "right"]
    assert {namespace for _, namespace in mesh.asked} == {"team"}
    assert response.way == "index"


async def test_of_copies_of_a_row_one_is_found_this_nodes_where_they_are_alike() -> None:
    mesh = Mesh(
        a=answer(hit("1", 0.9), hit("2", 0.4), identity="i"),
        b=answer(hit("1", 0.9), hit("2", 0.5), identity="i"),
        c=answer(hit("1", 0.9), identity="another"),
    )
    assert found(await mesh.search(scope=MESH)) == [("1", "a"), ("1", "c"), ("2", "b")]


async def test_of_squared_distances_the_least_come_first() -> None:
    far, near = (answer(hit(name, score), metric=pb.METRIC_L2) for name, score in (("far", 3.0), ("near", 1.0)))
    assert found(await Mesh(a=far, a2=near).search(scope=SITE)) == [("near", "a2"), ("far", "a")]
    fused = answer(hit("fused", 0.8, lexical_rank=1), metric=pb.METRIC_L2)
    less = answer(hit("less", 0.3, lexical_rank=1), metric=pb.METRIC_L2)
    assert found(await Mesh(a=less, a2=fused).search(scope=SITE)) == [("fused", "a2"), ("less", "a")]


async def test_scores_of_another_metric_are_left_out() -> None:
    response = await Mesh(a=answer(hit("1", 0.1)), b=answer(hit("2", 9.0), metric=pb.METRIC_L2)).search(scope=REGION)
    assert (found(response), missing(response)) == ([("1", "a")], {"b": "its collection has another metric"})


async def test_who_has_not_answered_is_named_with_the_reason() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    mesh = Mesh(a=answer(hit("1", 0.9)), a2=NotFound("no collection"), b=never, c=Unreachable("refused"))
    response = await mesh.search(scope=MESH, within_ms=20)
    assert found(response) == [("1", "a")]
    assert missing(response) == {"a2": "no such collection", "b": "late", "c": "unreachable"}


@pytest.mark.parametrize("left_s", [None, 0.05])
async def test_the_calls_deadline_bounds_the_time(left_s: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("nearmesh_agent.vectors.across.reach.WITHIN_S", 0.05)
    assert missing(await Mesh(b=never).search(scope=REGION, left_s=left_s)) == {"b": "late"}


async def test_p9_where_a_rule_bars_the_way_nothing_is_sent() -> None:
    mesh = Mesh(a=answer(hit("1", 0.9)))
    mesh.nodes = [*NODES[:3], VectorNode(node="c", site="far", region="us", barred=True)]
    assert missing(await mesh.search(scope=MESH)) == {"c": "residency"}
    assert "c" not in [node for node, _ in mesh.asked]
    with pytest.raises(Unreachable, match="c: residency"):
        await mesh.search(scope=SITE, name="far")


async def test_p9_a_node_that_may_not_be_asked_from_here_says_so() -> None:
    bound = pb.Collection(collection=pb.CollectionRef(name="docs"), regions=["us"])
    # One that nobody knows the region of is in none.
    for region in ("eu", ""):
        with pytest.raises(PermissionDenied) as refused:
            check_asked_from(bound, replace(HERE, region=region))
    assert missing(await Mesh(c=refused.value).search(scope=MESH)) == {"c": "residency"}
    check_asked_from(bound, replace(HERE, region="us"))
    check_asked_from(pb.Collection(), HERE)


async def test_an_answer_in_a_metric_that_nobody_knows_is_left_out() -> None:
    mesh = Mesh(a=NotFound("none"), a2=NotFound("none"), b=answer(hit("1", 0.9), metric=99))  # type: ignore[arg-type]
    mesh.said["c"] = answer(hit("2", 0.1))
    response = await mesh.search(scope=MESH)
    assert (found(response), missing(response)["b"]) == ([("2", "c")], "its collection has another metric")


async def test_what_is_deleted_here_is_found_in_no_other_sites_copy() -> None:
    mesh = Mesh(a=answer(hit("1", 0.1), identity="i"), c=answer(hit("2", 0.9), hit("3", 0.8), identity="i"))
    mesh.said["b"] = answer(hit("2", 0.7), identity="another")
    mesh.deleted["i"] = ["2"]
    assert found(await mesh.search(scope=MESH)) == [("3", "c"), ("2", "b"), ("1", "a")]


def test_p9_rows_of_a_site_that_a_rule_binds_are_asked_for_nowhere_else_either() -> None:
    shared = pb.Collection(collection=pb.CollectionRef(name="docs"), site="right", replicate_to=["far"])
    check_asked_from(shared, replace(HERE, barred=frozenset({"another"})))
    with pytest.raises(PermissionDenied, match="residency: collection 'docs' has rows of far, which stay out of 'eu'"):
        check_asked_from(shared, replace(HERE, barred=frozenset({"far"})))


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([NotFound("x"), NotFound("x")], NotFound),
        ([NotFound("x"), Unreachable("x")], Unreachable),
        ([DeadlineExceeded("x"), NotFound("x")], Unreachable),
        # What is wrong with the question is told, whoever says it.
        ([Unreachable("x"), InvalidInput("the vector has 3 numbers")], InvalidInput),
    ],
)
async def test_where_nobody_answers_the_reason_is_told(errors: list[MeshError], expected: type[MeshError]) -> None:
    with pytest.raises(expected):
        await Mesh(a=errors[0], a2=errors[1]).search(scope=SITE)


async def test_retrieved_passages_come_in_the_order_of_the_reranker_where_there_is_one() -> None:
    def passages(name: str, score: float, rerank: float) -> pb.RetrieveResponse:
        timings = pb.RetrieveResponse.Timings(embed_ms=7)
        return pb.RetrieveResponse(hits=[hit(name, score, rerank_score=rerank)], timings=timings)

    said = {"a": passages("first", 0.9, 0.1), "a2": passages("second", 0.2, 0.8)}

    async def there(node: VectorNode, request: Any, namespace: str, within_s: float) -> Any:
        return said[node.node]

    async def own(request: Any) -> Any:
        return said["a"]

    for reranker, order in (("", ["first", "second"]), ("model", ["second", "first"])):
        request = pb.RetrieveRequest(text="?", reranker=reranker, reach=pb.Reach(scope=SITE))
        response = await Reach(HERE, lambda: NODES, there, Mesh()._deleted).retrieve(request, "team", own)
        assert [one.row.id for one in response.hits] == order
        assert response.timings.embed_ms == 7
