"""All that SuperNodes send through the control plane, as it is after TLS, and the Flower messages in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr.app import Message
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry, inflate_object_from_contents
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event


@dataclass(slots=True)
class Recorder:
    """Put around the Fleet API."""

    # Path, headers and body of each request.
    requests: list[tuple[str, bytes, bytes]] = field(default_factory=list)

    def around(self, app: ASGIApp) -> ASGIApp:
        async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
            body = bytearray()

            async def heard() -> Event:
                event = await receive()
                body.extend(event.get("body", b""))
                return event

            try:
                await app(scope, heard, send)
            finally:
                if scope["type"] == "http":
                    headers = b"\n".join(b": ".join(pair) for pair in scope["headers"])
                    self.requests.append((scope["path"], headers, bytes(body)))

        return recorded

    @property
    def everything(self) -> bytes:
        return b"\0".join(part for path, headers, body in self.requests for part in (path.encode(), headers, body))

    def messages(self) -> list[Message]:
        """Those that sites sent, put together from their objects."""
        objects = {}
        for body in self._bodies("push-object"):
            pushed = PushObjectRequest.FromString(body)
            objects[pushed.object_id] = pushed.object_content
        sent = [PushMessagesRequest.FromString(body) for body in self._bodies("push-messages")]
        ids = [tree.object_id for request in sent for tree in request.message_object_trees]
        found = [inflate_object_from_contents(id, objects, keep_object_contents=True) for id in ids]
        return [one for one in found if isinstance(one, Message)]

    def strange_objects(self) -> list[bytes]:
        """Pushed objects of no class of Flower's."""
        contents = [PushObjectRequest.FromString(body).object_content for body in self._bodies("push-object")]
        names = tuple(name.encode() for name in inflatable_class_registry)
        return [content[:64] for content in contents if not content.startswith(names)]

    def paths(self) -> set[str]:
        return {path for path, _, _ in self.requests}

    def _bodies(self, call: str) -> list[bytes]:
        return [body for path, _, body in self.requests if path == f"/v1/fleet/{call}"]
