"""Messages to sites over Flower's grid, and their answers, until all have come or the time is up.

What comes after its time is dropped and counted. Each message's answer is fetched by a thread of its own: one that
arrives slowly, piece by piece, holds nobody else up. The answer of a site that is out of reach at the moment is not
asked for, since Flower would then give the message up; the site may well be working on it, and be back in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from typing import Protocol

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from google.protobuf.message import DecodeError

# Between two looks for answers: so much of the time that has passed, so that a look costs little of what it waits for.
POLL_PART = 0.05
POLL_LEAST_S, POLL_MOST_S = 0.1, 1.0
# A look that brings nothing takes a few milliseconds; one that brings parameters goes on in the background.
PULL_S = 0.25
# Who is in reach changes slowly.
ONLINE_S = 1.0
# A message and its answer are good for twice the time that is waited for them, and a little more. A question that too
# few have answered is asked again, and who is slow is in time for that; what comes later still is counted as late. A
# message that nobody has fetched is given out until then, too: a site that comes back may work on it for nothing.
LIVES, LATE_S = 2, 30.0
# How often a message is sent again that Flower has lost.
SENDS = 3

# The message, or its answer, went astray; no word of the site.
_LOST = {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}
# What Flower raises where the way to the SuperLink broke: no fault of the run, which is begun anew and goes on.
BROKEN_WAY = (httpx.HTTPError, ObjectPushError)
# What Flower raises over the bytes of a site that keeps to none of its formats.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, EOFError, RecursionError, DecodeError)
# A site's reason is shown to people.
_LONGEST_REASON = 200


def pause_s(waited_s: float) -> float:
    """Before the next look for answers that have been waited for so long."""
    return min(max(POLL_PART * waited_s, POLL_LEAST_S), POLL_MOST_S)


class Clock(Protocol):
    def now_s(self) -> float:
        """Seconds since the epoch."""
        ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now_s(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def push(grid: Grid, messages: Sequence[Message]) -> Sequence[str]:
    """Their ids; an empty one is of a message that Flower did not take.

    What a SuperLink stored that died before it could say so is offered to the next one again, and refused. Messages
    that are sent once more are the same to it, and it takes what it lacks of them.
    """
    try:
        return list(grid.push_messages(messages))
    except ObjectPushError:
        return list(grid.push_messages(messages))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a site sent; no content: why it failed there."""

    content: RecordDict | None
    failed: str = ""


@dataclass(slots=True)
class _Sent:
    node_id: int
    # Flower keeps neither the message nor its answer for longer.
    gone_at_s: float
    pull: Future[Iterable[Message]] | None = None


@dataclass(slots=True)
class Question:
    """A round's messages of one kind. Asked again, it takes answers to what was sent before, too."""

    content: RecordDict
    message_type: str
    group: str
    until_s: float = 0.0
    # By message id.
    pending: dict[str, _Sent] = field(default_factory=dict)
    # How often each node was sent it, of those that are asked.
    sends: dict[int, int] = field(default_factory=dict)
    answers: dict[int, Answer] = field(default_factory=dict)

    @property
    def lost(self) -> list[int]:
        """Nodes that may be sent it again."""
        known = {sent.node_id for sent in self.pending.values()} | self.answers.keys()
        return [node for node, sends in self.sends.items() if node not in known and sends < SENDS]

    @property
    def waits(self) -> bool:
        """For one of those that are asked."""
        pending = {sent.node_id for sent in self.pending.values()}
        return bool(self.lost) or any(node in pending and node not in self.answers for node in self.sends)


class Asking:
    """One Flower run's way to its sites."""

    def __init__(self, grid: Grid, executor: Executor, clock: Clock | None = None) -> None:
        self._grid = grid
        self._executor = executor
        self._clock = clock or SystemClock()
        # Those whose time is over.
        self._overdue: dict[str, _Sent] = {}
        self._late = 0
        self._online: frozenset[int] = frozenset()
        self._online_at_s = float("-inf")

    def online(self) -> frozenset[int]:
        """Flower's ids of the nodes that are there, as of a moment ago."""
        if not 0 <= self._clock.now_s() - self._online_at_s < ONLINE_S:
            self._online = frozenset(self._grid.get_node_ids())
            self._online_at_s = self._clock.now_s()
        return self._online

    def take_late(self) -> int:
        """Answers that have come after their time since this was last asked."""
        late, self._late = self._late, 0
        return late

    def ask(
        self,
        question: Question,
        nodes: Collection[int],
        until_s: float,
        told: Callable[[Mapping[int, Answer]], None] = lambda _answers: None,
    ) -> dict[int, Answer]:
        """Answers by node; a node without one is silent. `told` hears of them as they come.

        `close` has to follow, after one or more of these.
        """
        question.until_s, question.sends = until_s, dict.fromkeys(nodes, 0)
        for node in nodes:
            question.answers.pop(node, None)
        began_s = self._clock.now_s()
        self._send(question, list(nodes))
        while question.waits and (now_s := self._clock.now_s()) < until_s:
            if self._look(question):
                told(question.answers)
                continue
            self._clock.sleep(min(pause_s(now_s - began_s), until_s - now_s))
        return {node: question.answers[node] for node in nodes if node in question.answers}

    def close(self, question: Question) -> None:
        """What still comes is late."""
        self._overdue |= question.pending
        question.pending = {}

    def _send(self, question: Question, nodes: Collection[int]) -> None:
        if not nodes:
            return
        now_s = self._clock.now_s()
        ttl_s = LIVES * (question.until_s - now_s) + LATE_S
        messages = [
            Message(question.content, node, question.message_type, ttl=ttl_s, group_id=question.group) for node in nodes
        ]
        for node, id in zip(nodes, push(self._grid, messages), strict=False):
            question.sends[node] += 1
            # None: Flower did not take it.
            if id:
                question.pending[id] = _Sent(node, now_s + ttl_s)

    def _look(self, question: Question) -> bool:
        """Whether anything new has come."""
        self._pull({**question.pending, **self._overdue})
        self._late += sum(answer is not None for _, answer in self._taken(self._overdue))
        news = False
        for node_id, answer in self._taken(question.pending):
            if answer is not None and node_id not in question.answers:
                question.answers[node_id] = answer
                news = True
        self._send(question, [node for node in question.lost if node in self.online()])
        return news

    def _pull(self, all_sent: Mapping[str, _Sent]) -> None:
        for id, sent in all_sent.items():
            if sent.pull is None and sent.node_id in self.online():
                sent.pull = self._executor.submit(self._grid.pull_messages, [id])
        wait([sent.pull for sent in all_sent.values() if sent.pull is not None], timeout=PULL_S)

    def _taken(self, all_sent: dict[str, _Sent]) -> Iterator[tuple[int, Answer | None]]:
        """Takes out those whose answer is there, and those that will have none any more."""
        for id, sent in list(all_sent.items()):
            if sent.pull is None:
                if self._clock.now_s() > sent.gone_at_s:
                    del all_sent[id]
                continue
            if not sent.pull.done():
                continue
            pull, sent.pull = sent.pull, None
            for answer in _pulled(pull):
                del all_sent[id]
                yield sent.node_id, answer


def _pulled(pull: Future[Iterable[Message]]) -> list[Answer | None]:
    """None is a lost message; nothing at all: nothing is there yet."""
    try:
        return [_answer(message) for message in pull.result()][:1]
    except _UNREADABLE as error:
        return [Answer(None, f"its answer cannot be read ({type(error).__name__})")]


def _answer(message: Message) -> Answer | None:
    """None: the message was lost on its way."""
    if not message.has_error():
        return Answer(message.content)
    if message.error.code in _LOST:
        return None
    reason = "".join(c if c.isprintable() else " " for c in message.error.reason or "no reason given")
    return Answer(None, reason[:_LONGEST_REASON])
