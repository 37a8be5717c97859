"""One order of what a vector and what words found."""

from __future__ import annotations

import pytest
from nearmesh_agent.vectors.across.hits import Answer, best, fuse_again
from nearmesh_agent.vectors.model import Found, Metric
from nearmesh_agent.vectors.text import fusion

from nearmesh.v1 import vector_pb2 as pb
from nearmesh.v1.node_pb2 import VectorNode

DENSE = [Found("both", 0.8), Found("near", 0.7), Found("far", 0.1)]
WORDS = [Found("said", 6.0), Found("both", 4.0)]


def fuse(dense=DENSE, lexical=WORDS, **more):
    return fusion.fuse(dense, lexical, **{"metric": Metric.COSINE, "weight": 0.5} | more)


def test_both_scores_count():
    first = fuse()[0]
    assert first.id == "both" and first.score == pytest.approx(0.5 * 0.8 + 0.5 * 4 / 6)
    assert (first.dense_score, first.dense_rank, first.lexical_score, first.lexical_rank) == (0.8, 1, 4.0, 2)


def test_what_one_did_not_find_has_its_score_but_no_rank():
    found = {each.id: each for each in fuse(more_dense={"said": 0.6}, more_lexical={"near": 1.0})}
    assert found["said"].score == pytest.approx(0.5 * 0.6 + 0.5 * 1)
    assert found["said"].dense_rank == 0 and found["said"].dense_score == 0.6
    assert found["near"].score == pytest.approx(0.5 * 0.7 + 0.5 * 1 / 6)


def test_what_has_no_distance_counts_as_the_farthest():
    assert {each.id: each.score for each in fuse()}["said"] == pytest.approx(0.5 * 0.1 + 0.5 * 1)


@pytest.mark.parametrize(("weight", "order"), [(1.0, ["both", "near", "far"]), (0.0, ["said", "both"])])
def test_all_the_weight_on_one_side_is_its_order(weight, order):
    assert [each.id for each in fuse(weight=weight)][: len(order)] == order


@pytest.mark.parametrize("metric", list(Metric))
def test_nearer_scores_higher_by_every_metric(metric):
    closer, farther = (0.5, 9.0) if metric is Metric.L2 else (0.9, -0.5)
    near, far = fusion.nearness(closer, metric), fusion.nearness(farther, metric)
    assert -1 <= far < near <= 1


def test_one_way_alone_keeps_its_order_and_scores():
    assert [(each.id, each.score, each.lexical_rank) for each in fusion.alone(lexical=WORDS)] == [
        ("said", 6.0, 1),
        ("both", 4.0, 2),
    ]
    assert [each.dense_rank for each in fusion.alone(dense=DENSE)] == [1, 2, 3]


def test_nothing_found_is_no_error():
    assert fuse([], []) == []
    assert [each.id for each in fuse(DENSE, [])] == ["both", "near", "far"]
    assert [each.id for each in fuse([], WORDS)] == ["said", "both"]


# Of several nodes.


def node(*hits, **more):
    return Answer(node=VectorNode(node="a"), found=pb.RetrieveResponse(hits=hits, metric=pb.METRIC_COSINE, **more))


def hit(id, score, dense, lexical):
    return pb.Hit(row=pb.Row(id=id), score=score, dense_score=dense, lexical_score=lexical)


def test_a_node_whose_best_words_say_little_does_not_come_first():
    """Each node's best by words has all of that part by its own count."""
    answers = [node(hit("weak", 0.68, 0.2, 1.0)), node(hit("good", 0.72, 0.3, 9.0), hit("next", 0.62, 0.3, 7.0))]
    fuse_again(answers, pb.RetrieveRequest(text="x"))
    assert [each.row.id for each in best(answers, 10)] == ["good", "next", "weak"]
    assert answers[0].found.hits[0].score == pytest.approx(0.5 * 0.2 + 0.5 / 9)
    fuse_again(answers, pb.RetrieveRequest(text="x", dense_weight=1.0))
    assert answers[0].found.hits[0].score == pytest.approx(0.2)


@pytest.mark.parametrize("mode", [pb.RetrieveRequest.MODE_DENSE, pb.RetrieveRequest.MODE_LEXICAL])
def test_scores_of_one_way_stay_as_they_are(mode):
    answers = [node(hit("a", 5.0, 0.1, 5.0))]
    fuse_again(answers, pb.RetrieveRequest(text="x", mode=mode))
    assert answers[0].found.hits[0].score == 5
    words = [node(hit("a", 5.0, 0.0, 5.0))]
    fuse_again(words, pb.RetrieveRequest(text="x"))
    assert words[0].found.hits[0].score == 5, "no embedder anywhere"
