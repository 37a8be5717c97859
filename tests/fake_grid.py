"""Flower's grid without Flower's processes: sites are functions, and time is what the test says it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

# What a site makes of a message: an answer, an error's words, bytes that Flower raises over, or nothing at all.
Site = Callable[[Message], RecordDict | str | Exception | None]


class FakeClock:
    def __init__(self) -> None:
        self.time_s = 1_800_000_000.0
        # What happens as time goes on.
        self.due: list[tuple[float, Callable[[], None]]] = []

    def now_s(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds
        for entry in [entry for entry in self.due if entry[0] <= self.time_s]:
            self.due.remove(entry)
            entry[1]()

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.due.append((self.time_s + seconds, what))


class Inline(Executor):
    """Does it at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # as an executor does
            future.set_exception(error)
        return future


@dataclass
class _Sent:
    message: Message
    reply: Message | Exception | None
    ready_at_s: float
    gone_at_s: float


@dataclass
class FakeGrid:
    """As Flower 1.41's: a message to who is out of reach is given up when its answer is asked for."""

    clock: FakeClock
    sites: dict[int, Site]
    # How long each takes, seconds.
    delay_s: dict[int, float] = field(default_factory=dict)
    offline: set[int] = field(default_factory=set)
    sent: list[tuple[int, str, str]] = field(default_factory=list)
    _messages: dict[str, _Sent] = field(default_factory=dict)

    def get_node_ids(self) -> list[int]:
        return [node for node in self.sites if node not in self.offline]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [found for id in message_ids if (found := self._pulled(id)) is not None]

    def forget(self) -> None:
        """Flower loses every message that is on its way."""
        self._messages.clear()

    def _push(self, message: Message) -> str:
        id, node = f"message-{len(self.sent)}", message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = id
        self.sent.append((node, message.metadata.message_type, message.metadata.group_id))
        now_s = self.clock.now_s()
        ready_at_s = now_s + self.delay_s.get(node, 0.5)
        self._messages[id] = _Sent(message, self._reply(message), ready_at_s, now_s + message.metadata.ttl)
        return id

    def _reply(self, message: Message) -> Message | Exception | None:
        said = self.sites[message.metadata.dst_node_id](message)
        if said is None or isinstance(said, Exception):
            return said
        if isinstance(said, str):
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, said), reply_to=message)
        return Message(said, reply_to=message)

    def _pulled(self, id: str) -> Message | None:
        sent = self._messages.get(id)
        if sent is None or self.clock.now_s() > sent.gone_at_s:
            return self._lost(id, ErrorCode.MESSAGE_UNAVAILABLE)
        if sent.message.metadata.dst_node_id in self.offline:
            return self._lost(id, ErrorCode.NODE_UNAVAILABLE)
        if sent.reply is None or self.clock.now_s() < sent.ready_at_s:
            return None
        del self._messages[id]
        if isinstance(sent.reply, Exception):
            raise sent.reply
        return sent.reply

    def _lost(self, id: str, code: int) -> Message:
        self._messages.pop(id, None)
        asked = Message(RecordDict(), 1, "train")
        asked.metadata.__dict__["_message_id"] = id
        return Message(Error(code, "not there"), reply_to=asked)


@contextmanager
def flower_identity() -> Iterator[None]:
    """Messages are made inside a Flower run."""
    names = ("run_id", "node_id", "task_id")
    before: Mapping[str, Any] = {name: getattr(TaskIdentity, f"_{name}") for name in names}
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, f"_{name}", value)
