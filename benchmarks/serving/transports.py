"""How requests travel to a server: the Open Inference Protocol through tritonclient, or LitServe's JSON over HTTP.

Every request is encoded once, before anything is measured, so that a client costs the machine as little as may be.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from benchmarks.serving.models import Arrays

OK, EXPIRED, REFUSED, UNAVAILABLE = "OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"
# Triton refuses as UNAVAILABLE, in these words: by the length of the queue, and by the time in it.
TRITON_REFUSALS = ("Exceeds maximum queue size", "Request timeout expired")
# What a server without gRPC says for the same.
HTTP_STATUSES = {200: OK, 429: REFUSED, 503: UNAVAILABLE, 504: EXPIRED}


class Failed(Exception):
    """A request that was not answered; the text begins with the status."""

    def __init__(self, status: str, message: str = "") -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Transport(Protocol):
    """A client of one model on one server."""

    async def ask(self, number: int, timeout_s: float) -> Any:
        """Sends the request of that number; the answer as it came, not looked at. Raises Failed."""
        ...

    def outputs(self, answer: Any) -> Arrays:
        """The arrays of an answer."""
        ...

    async def close(self) -> None: ...


def connect(protocol: str, address: str, model: str, inputs: Arrays) -> Transport:
    """A transport for the requests whose rows `inputs` has. Connects with the first request."""
    kinds: Mapping[str, type[Oip] | type[LitServe]] = {"oip": Oip, "litserve": LitServe}
    return kinds[protocol](address, model, inputs)


def _rows(inputs: Arrays) -> list[dict[str, np.ndarray]]:
    count = len(next(iter(inputs.values())))
    return [{name: np.ascontiguousarray(array[i : i + 1]) for name, array in inputs.items()} for i in range(count)]


class Oip:
    """Open Inference Protocol, by tritonclient's own asynchronous client."""

    def __init__(self, address: str, model: str, inputs: Arrays) -> None:
        # A pool of its own: channels to servers that came and went on one port are not to be found again.
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        options.append(("grpc.use_local_subchannel_pool", 1))
        self._client = triton.InferenceServerClient(address, channel_args=options)
        self._model = model
        self._requests = [self._inputs(row) for row in _rows(inputs)]

    @staticmethod
    def _inputs(row: Mapping[str, np.ndarray]) -> list[triton.InferInput]:
        found = []
        for name, array in row.items():
            tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            found.append(tensor)
        return found

    async def ask(self, number: int, timeout_s: float) -> triton.InferResult:
        inputs = self._requests[number % len(self._requests)]
        try:
            return await self._client.infer(self._model, inputs, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise Failed(_status(error), str(error.message())) from None

    def outputs(self, answer: triton.InferResult) -> Arrays:
        # Some servers answer in the typed contents of the message, which as_numpy reads as well.
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

    async def close(self) -> None:
        await self._client.close()


def _status(error: InferenceServerException) -> str:
    status = str(error.status()).removeprefix("StatusCode.")
    refused = any(words in str(error.message()) for words in TRITON_REFUSALS)
    return REFUSED if status == UNAVAILABLE and refused else status


class LitServe:
    """JSON with each tensor's bytes in base64, over HTTP connections that stay open.

    A client of a few lines, since a general one would take more of the machine than the server that it measures.
    """

    def __init__(self, address: str, model: str, inputs: Arrays) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._requests = [self._message(row) for row in _rows(inputs)]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def _message(self, row: Mapping[str, np.ndarray]) -> bytes:
        body = json.dumps({name: base64.b64encode(array.tobytes()).decode() for name, array in row.items()}).encode()
        head = (
            f"POST /predict HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def ask(self, number: int, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                status, body = await self._exchange(self._requests[number % len(self._requests)])
        except TimeoutError:
            raise Failed(EXPIRED) from None
        except (OSError, EOFError) as error:
            raise Failed(UNAVAILABLE, str(error)) from None
        if status != 200:
            raise Failed(HTTP_STATUSES.get(status, f"HTTP {status}"), body[:200].decode("utf-8", "replace"))
        return body

    async def _exchange(self, message: bytes) -> tuple[int, bytes]:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(message)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            body = await reader.readexactly(length)
        except BaseException:
            # Cancelled or timed out on the way: what is left of the answer must not meet the next request.
            writer.close()
            raise
        self._idle.append((reader, writer))
        return int(head.split(maxsplit=2)[1]), body

    def outputs(self, answer: bytes) -> Arrays:
        return {name: np.frombuffer(base64.b64decode(text), np.float32) for name, text in json.loads(answer).items()}

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()
