"""One answer of several nodes' answers: the best of all, each row once, and who has contributed what. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nearmesh.errors import InvalidInput, MeshError, NotFound, PermissionDenied, Unreachable
from nearmesh.v1 import node_pb2
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors.text import fusion
from nearmesh_agent.vectors.wire import METRICS

DEFAULT_K = 10
LATE, UNREACHABLE, RESIDENCY, NO_COLLECTION = "late", "unreachable", "residency", "no such collection"
# Of a reason that a node gives.
_MOST_CHARACTERS = 200


@dataclass(slots=True, kw_only=True)
class Answer:
    """Of one node; `found` or `error`, or neither where nothing came in time."""

    node: node_pb2.VectorNode
    found: pb.SearchResponse | pb.RetrieveResponse | None = None
    error: MeshError | None = None
    ms: float = 0.0


def compare(answers: Sequence[Answer]) -> None:
    """Leaves out what cannot be compared with the first answer: scores of another metric, or of one not known here."""
    metric = next((one.found.metric for one in answers if one.found and one.found.metric in METRICS), None)
    for answer in answers:
        if answer.found and answer.found.metric != metric:
            answer.found, answer.error = None, InvalidInput("its collection has another metric")


def leave_out(answers: Sequence[Answer], identity: str, ids: Collection[str]) -> None:
    """Rows of one collection, whoever found them."""
    for answer in answers:
        if answer.found and answer.found.identity == identity:
            kept = [hit for hit in answer.found.hits if hit.row.id not in ids]
            del answer.found.hits[:]
            answer.found.hits.extend(kept)


def fuse_again(answers: Sequence[Answer], request: pb.RetrieveRequest) -> None:
    """Fused scores are made against the best that each node has itself; afterwards, against the best of all."""
    found = [hit for answer in answers if answer.found for hit in answer.found.hits]
    one_way = request.mode in (pb.RetrieveRequest.MODE_DENSE, pb.RetrieveRequest.MODE_LEXICAL)
    if one_way or not any(hit.dense_rank or hit.dense_score for hit in found):
        return
    weight = request.dense_weight if request.HasField("dense_weight") else fusion.DENSE_WEIGHT
    metric = METRICS[next(answer.found.metric for answer in answers if answer.found)]
    scores = fusion.again([(hit.dense_score, hit.lexical_score) for hit in found], metric=metric, weight=weight)
    for hit, score in zip(found, scores, strict=True):
        hit.score = score


def best(answers: Sequence[Answer], k: int, *, reranked: bool = False) -> list[pb.Hit]:
    """The best k, each row of copies of one collection once; the first answer's where they are alike."""
    candidates = [
        (_rank(hit, _lower_is_nearer(answer), reranked=reranked), order, hit, _name(hit, answer))
        for order, answer in enumerate(answers)
        if answer.found
        for hit in answer.found.hits
    ]
    candidates.sort(key=lambda one: one[:2])
    found: dict[tuple[str, str], pb.Hit] = {}
    for *_, hit, name in candidates:
        if name not in found:
            found[name] = hit
        if len(found) == (k or DEFAULT_K):
            break
    return list(found.values())


def _lower_is_nearer(answer: Answer) -> bool:
    return answer.found is not None and answer.found.metric == pb.METRIC_L2


def _rank(hit: pb.Hit, lower_is_nearer: bool, *, reranked: bool) -> float:
    """Less is better."""
    if reranked:
        return -hit.rerank_score
    # A fused score is none of the metric's.
    fused = hit.lexical_rank or hit.lexical_score
    return hit.score if lower_is_nearer and not fused else -hit.score


def _name(hit: pb.Hit, answer: Answer) -> tuple[str, str]:
    assert answer.found
    return answer.found.identity or f"of {answer.node.node}", hit.row.id


def contributions(answers: Sequence[Answer], hits: Sequence[pb.Hit]) -> list[pb.Contribution]:
    """What each node gave to the hits, or why it gave none."""
    counts: dict[str, int] = {}
    for hit in hits:
        counts[hit.node] = counts.get(hit.node, 0) + 1
    return [
        pb.Contribution(
            node=answer.node.node,
            site=answer.node.site,
            region=answer.node.region,
            hits=counts.get(answer.node.node, 0),
            ms=answer.ms,
            missing="" if answer.found else missing(answer),
            identity=answer.found.identity if answer.found else "",
        )
        for answer in answers
    ]


def missing(answer: Answer) -> str:
    """Why a node has not contributed, in a few words."""
    match answer.error:
        case _ if answer.node.barred:
            return RESIDENCY
        case None:
            return LATE
        case NotFound():
            return NO_COLLECTION
        case Unreachable():
            return UNREACHABLE
        case PermissionDenied() as error if RESIDENCY in error.message:
            return RESIDENCY
        case error:
            return error.message[:_MOST_CHARACTERS]


def failure(answers: Sequence[Answer]) -> MeshError:
    """Where nobody answered: what the caller is told."""
    errors = [answer.error for answer in answers if answer.error]
    wrong = next((error for error in errors if not isinstance(error, Unreachable | NotFound)), None)
    if wrong:
        return wrong
    if len(errors) == len(answers) and all(isinstance(error, NotFound) for error in errors):
        return errors[0]
    said = ", ".join(f"{answer.node.node}: {missing(answer)}" for answer in answers)
    return Unreachable(f"nobody answered ({said})")
