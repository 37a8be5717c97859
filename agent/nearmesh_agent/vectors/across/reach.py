"""A query that travels: asks the nodes that it is for, all at once, and makes one answer of what came in time.

The vectors stay where they are. Who has not answered is named, with the reason, and so is who may not be asked: that
what is of one region stays out of another is decided before anything is sent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import grpc

from nearmesh.errors import DeadlineExceeded, InvalidInput, MeshError, PermissionDenied
from nearmesh.rpc import from_rpc_error
from nearmesh.v1 import node_pb2, vector_pb2_grpc
from nearmesh.v1 import vector_pb2 as pb
from nearmesh_agent.vectors.across import hits, places
from nearmesh_agent.vectors.across.hits import Answer
from nearmesh_agent.vectors.across.mesh import MeshChannels
from nearmesh_agent.vectors.across.places import Here
from nearmesh_agent.vectors.namespaces import KEY

log = logging.getLogger(__name__)

# Where the call has no deadline, and of one that it has, what is left for the way back.
WITHIN_S = 5.0
_FOR_THE_WAY_BACK = 0.9
# Nodes that one query may ask.
MOST_NODES = 256

Request = TypeVar("Request", pb.SearchRequest, pb.RetrieveRequest)
Response = TypeVar("Response", pb.SearchResponse, pb.RetrieveResponse)
Asked = pb.SearchRequest | pb.RetrieveRequest
Found = pb.SearchResponse | pb.RetrieveResponse
# Asks another node, on behalf of a namespace, within seconds. Raises MeshError.
There = Callable[[node_pb2.VectorNode, Asked, str, float], Awaitable[Found]]
# Of a collection's ids, those that are deleted here. Raises MeshError.
Deleted = Callable[[str, Sequence[str]], Awaitable[Iterable[str]]]


class Reach:
    """Of one node."""

    def __init__(
        self, here: Here, nodes: Callable[[], Sequence[node_pb2.VectorNode]], there: There, deleted: Deleted
    ) -> None:
        """`nodes` are all that keep vectors, as the control plane said last."""
        self._here = here
        self._nodes = nodes
        self._there = there
        self._deleted = deleted

    async def search(
        self,
        request: pb.SearchRequest,
        namespace: str,
        own: Callable[[pb.SearchRequest], Awaitable[pb.SearchResponse]],
        left_s: float | None = None,
    ) -> pb.SearchResponse:
        """`own` asks this node itself; `left_s` is what the call's deadline leaves. Raises what all nodes say."""
        began_s = time.monotonic()
        answers = await self._ask(request, namespace, own, left_s)
        found = hits.best(answers, request.k)
        return pb.SearchResponse(
            hits=found,
            contributions=hits.contributions(answers, found),
            took_ms=_since_ms(began_s),
            way=" ".join(
                sorted({answer.found.way for answer in answers if isinstance(answer.found, pb.SearchResponse)})
            ),
            metric=_metric(answers),
        )

    async def retrieve(
        self,
        request: pb.RetrieveRequest,
        namespace: str,
        own: Callable[[pb.RetrieveRequest], Awaitable[pb.RetrieveResponse]],
        left_s: float | None = None,
    ) -> pb.RetrieveResponse:
        """As `search`. Every node embeds the text itself: their embedders may differ."""
        began_s = time.monotonic()
        answers = await self._ask(request, namespace, own, left_s)
        hits.fuse_again(answers, request)
        found = hits.best(answers, request.k, reranked=bool(request.reranker))
        timings = pb.RetrieveResponse.Timings()
        for here in _found(answers[:1], pb.RetrieveResponse):
            timings.CopyFrom(here.timings)
        timings.total_ms = _since_ms(began_s)
        return pb.RetrieveResponse(
            hits=found,
            contributions=hits.contributions(answers, found),
            timings=timings,
            metric=_metric(answers),
        )

    async def _ask(
        self,
        request: Request,
        namespace: str,
        own: Callable[[Request], Awaitable[Found]],
        left_s: float | None,
    ) -> list[Answer]:
        """Everybody's, this node's first. Raises MeshError where there is none."""
        nodes = places.asked(request.reach, self._here, self._nodes())
        if len(nodes) > MOST_NODES:
            raise InvalidInput(f"the query is for {len(nodes)} nodes; at most {MOST_NODES} are asked: name a region")
        within_s = _within_s(request.reach, left_s)
        asked = type(request)()
        asked.CopyFrom(request)
        asked.ClearField("reach")
        asked.collection.namespace = namespace
        answers = [Answer(node=node) for node in nodes]
        calls = [
            asyncio.create_task(self._answer(answer, asked, namespace, own, within_s))
            for answer in answers
            if not answer.node.barred
        ]
        try:
            if calls:
                await asyncio.wait(calls, timeout=within_s)
        finally:
            for call in calls:
                call.cancel()
        for call in calls:
            if call.done() and not call.cancelled() and (bug := call.exception()):
                raise bug
        hits.compare(answers)
        await self._leave_out_deleted(answers)
        if not any(answer.found for answer in answers):
            raise hits.failure(answers)
        return answers

    async def _leave_out_deleted(self, answers: Sequence[Answer]) -> None:
        """A copy of a collection that has not heard of a delete finds the row still; here it is known to be gone."""
        ids: defaultdict[str, set[str]] = defaultdict(set)
        for answer in answers:
            if answer.found and answer.found.identity and answer.node.node != self._here.node:
                ids[answer.found.identity].update(hit.row.id for hit in answer.found.hits)
        for identity, found in ids.items():
            try:
                gone = frozenset(await self._deleted(identity, sorted(found)))
            except MeshError as error:
                log.warning("what is deleted here is not known for this query: %s", error.message)
                continue
            if gone:
                hits.leave_out(answers, identity, gone)

    async def _answer(
        self,
        answer: Answer,
        request: Request,
        namespace: str,
        own: Callable[[Request], Awaitable[Found]],
        within_s: float,
    ) -> None:
        """What one node says, into `answer`."""
        began_s = time.monotonic()
        try:
            if answer.node.node == self._here.node:
                answer.found = await own(request)
            else:
                answer.found = await self._there(answer.node, request, namespace, within_s)
        except DeadlineExceeded:
            # The same as none.
            return
        except MeshError as error:
            answer.error = error
        answer.ms = _since_ms(began_s)
        for hit in answer.found.hits if answer.found else ():
            # Whatever it says itself.
            hit.node, hit.site = answer.node.node, answer.node.site


def over(channels: MeshChannels) -> There:
    """Asks over the mesh."""

    async def ask(node: node_pb2.VectorNode, request: Asked, namespace: str, within_s: float) -> Found:
        stub = vector_pb2_grpc.VectorServiceStub(channels.to(node))
        call = stub.Search if isinstance(request, pb.SearchRequest) else stub.Retrieve
        try:
            found: Found = await call(request, timeout=within_s, metadata=((KEY, namespace),))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return found

    return ask


def check_asked_from(collection: pb.Collection, peer: Here) -> None:
    """A query that another node hands on: may the collection be asked from there? Raises PermissionDenied."""
    if not places.admits(collection.regions, peer.region):
        raise PermissionDenied(
            f"{hits.RESIDENCY}: collection {collection.collection.name!r} may be asked from "
            f"{', '.join(collection.regions)}, not from {peer.region!r}"
        )
    if bound := sorted({collection.site, *collection.replicate_to} & peer.barred):
        raise PermissionDenied(
            f"{hits.RESIDENCY}: collection {collection.collection.name!r} has rows of {', '.join(bound)}, which stay "
            f"out of {peer.region!r}"
        )


def _within_s(reach: pb.Reach, left_s: float | None) -> float:
    most_s = WITHIN_S if left_s is None else _FOR_THE_WAY_BACK * left_s
    return min(most_s, reach.within_ms / 1000) if reach.within_ms else most_s


def _found(answers: Sequence[Answer], kind: type[Response]) -> list[Response]:
    return [answer.found for answer in answers if isinstance(answer.found, kind)]


def _metric(answers: Sequence[Answer]) -> pb.Metric:
    return next((answer.found.metric for answer in answers if answer.found), pb.METRIC_UNSPECIFIED)


def _since_ms(began_s: float) -> float:
    return 1000 * (time.monotonic() - began_s)
