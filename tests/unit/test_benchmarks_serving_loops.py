"""How the serving benchmark drives a server and reads its answers, with servers that are none."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from benchmarks.serving.figures import BurstCell, Cell
from benchmarks.serving.loops import CANCELLED, Burst, arrivals, closed, opened, probe, statuses
from benchmarks.serving.systems import OURS
from benchmarks.serving.transports import EXPIRED, OK, REFUSED, Failed, LitServe, _rows, _status


class FakeTransport:
    """Answers at once with the request's number; every `refuses`-th call is refused."""

    def __init__(self, refuses: int = 0, wrong: int = -1, failing: int = 0) -> None:
        self.asked = 0
        self._refuses = refuses
        self._wrong = wrong
        self._failing = failing

    async def ask(self, number: int, timeout_s: float) -> int:
        self.asked += 1
        turn = self.asked
        await asyncio.sleep(0)
        if turn <= self._failing:
            raise Failed("UNAVAILABLE", "not yet")
        if self._refuses and turn % self._refuses == 0:
            raise Failed(REFUSED)
        return number

    def outputs(self, answer: int) -> Mapping[str, np.ndarray]:
        shown = 0 if answer == self._wrong else answer
        return {"y": np.array([[shown % 8 + 1.0]], np.float32)}

    async def close(self) -> None: ...


EXPECTED = {"y": np.arange(1, 9, dtype=np.float32)[:, None]}


async def test_a_server_is_ready_once_it_answers_everything_rightly() -> None:
    transport = FakeTransport(failing=1)
    assert await probe(transport, EXPECTED, 0.01, pid=os.getpid(), within_s=5) == {"difference": 0.0}
    assert transport.asked == 2 + 32


async def test_an_answer_of_another_request_is_seen() -> None:
    found = await probe(FakeTransport(wrong=13), EXPECTED, 0.01, pid=os.getpid(), within_s=5)
    assert "wrong by" in found["failed"]


async def test_a_server_that_fails_or_has_ended_is_told() -> None:
    gone = 2**22 + 1
    assert (await probe(FakeTransport(failing=99), EXPECTED, 0.01, pid=gone, within_s=5))["failed"] == (
        "the server ended"
    )
    late = await probe(FakeTransport(failing=99), EXPECTED, 0.01, pid=os.getpid(), within_s=0)
    assert late["failed"].endswith("last: UNAVAILABLE: not yet")


async def test_a_short_queue_is_no_wrong_answer() -> None:
    transport = FakeTransport(refuses=7)
    assert await probe(transport, EXPECTED, 0.01, pid=os.getpid(), within_s=5) == {"difference": 0.0}
    assert transport.asked > 1 + 32


async def test_a_closed_loop_counts_answers_and_refusals_apart() -> None:
    found = await closed(FakeTransport(refuses=2), callers=4, warm_s=0, seconds=0.05, pid=os.getpid())
    assert found["calls"] > 0
    assert found["errors"][REFUSED] > 0
    assert found["per_s"] == found["calls"] / 0.05
    assert 0 <= found["p50_ms"] <= found["p99_ms"]
    # Every figure has its place in a cell.
    assert Cell(round=1, model="tiny", system=OURS, callers=4, **found).per_s == found["per_s"]


def a_burst(**changes: Any) -> Burst:
    plain = Burst(per_s=1000, warm_s=0, seconds=0.05, deadline_s=0.2, cancelling=0, usual_s=0.1, seed=3)
    return replace(plain, **changes)


async def test_a_burst_is_sent_whatever_becomes_of_it() -> None:
    transport = FakeTransport(refuses=2)
    found = await opened(transport, a_burst(), pid=os.getpid())
    sent = len(list(arrivals(a_burst())))
    assert sum(status["calls"] for status in found["statuses"].values()) == sent
    assert found["offered_per_s"] == sent / 0.05
    assert found["goodput_per_s"] == found["statuses"][OK]["calls"] / 0.05
    assert found["empty_s"] < 0.1
    cells = BurstCell(round=1, model="image", system=OURS, scenario="2 x", peak_per_s=1.0, **found)
    assert 0 < cells.share(REFUSED) < 1


async def test_a_caller_who_gives_up_is_counted_as_such() -> None:
    class Silent(FakeTransport):
        async def ask(self, number: int, timeout_s: float) -> int:
            # The request that looks whether the queue is empty is patient, and answered.
            if timeout_s < 1:
                await asyncio.Event().wait()
            return number

    found = await opened(Silent(), a_burst(cancelling=1, deadline_s=0.1), pid=os.getpid())
    assert found["statuses"][CANCELLED]["calls"] > 0
    assert OK not in found["statuses"]


def test_arrivals_come_at_the_rate_and_the_same_each_time() -> None:
    plan = a_burst(per_s=500, seconds=20, cancelling=0.5)
    found = list(arrivals(plan))
    assert found == list(arrivals(plan)) != list(arrivals(replace(plan, seed=4)))
    assert len(found) / 20 == pytest.approx(500, rel=0.05)
    assert [a.due_s for a in found] == sorted(a.due_s for a in found)
    leaving = [a.gives_up_s for a in found if a.gives_up_s is not None]
    assert len(leaving) / len(found) == pytest.approx(0.5, abs=0.05)
    assert 0 <= min(leaving) < max(leaving) <= 0.2


def test_statuses_have_their_own_times() -> None:
    found = statuses([(OK, 0.1), (REFUSED, 0.001), (OK, 0.2)])
    assert found[OK] == {"calls": 2, "p50_ms": 100.0, "p95_ms": 200.0, "p99_ms": 200.0}
    assert found[REFUSED]["calls"] == 1


# Transports.


@pytest.mark.parametrize(
    ("status", "message", "meaning"),
    [
        ("StatusCode.UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", REFUSED),
        ("StatusCode.UNAVAILABLE", "Request timeout expired", REFUSED),
        ("StatusCode.UNAVAILABLE", "failed to connect", "UNAVAILABLE"),
        ("StatusCode.RESOURCE_EXHAUSTED", "the queue is full", REFUSED),
        ("StatusCode.INTERNAL", "Exceeds maximum queue size", "INTERNAL"),
    ],
)
def test_a_refusal_is_known_in_tritons_words_too(status: str, message: str, meaning: str) -> None:
    assert _status(InferenceServerException(message, status)) == meaning


def test_each_request_has_one_row_of_its_own() -> None:
    rows = _rows({"x": np.arange(6, dtype=np.float32).reshape(3, 2)})
    assert [row["x"].tolist() for row in rows] == [[[0, 1]], [[2, 3]], [[4, 5]]]


class FakeWriter:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def over_http(answer: bytes) -> tuple[LitServe, FakeWriter]:
    """A transport with an open connection on which that answer has arrived already."""
    found = LitServe("127.0.0.1:1", "tiny", {"x": np.ones((2, 3), np.float32)})
    reader, writer = asyncio.StreamReader(), FakeWriter()
    reader.feed_data(answer)
    found._idle.append((reader, writer))  # type: ignore[arg-type]
    return found, writer


def http(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def test_tensors_travel_as_base64_over_one_connection() -> None:
    numbers = np.array([1.5, 2.5], np.float32)
    transport, writer = over_http(http("200 OK", json.dumps({"y": _text(numbers)}).encode()))
    answer = await transport.ask(0, 1)
    assert transport.outputs(answer)["y"].tolist() == [1.5, 2.5]
    head, _, body = writer.written.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}" in head.decode().lower()
    assert json.loads(body) == {"x": _text(np.ones(3, np.float32))}
    # The connection is there for the next request.
    assert len(transport._idle) == 1
    assert not writer.closed


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


@pytest.mark.parametrize(("status", "meaning"), [("429 Too Many", REFUSED), ("500 Oh", "HTTP 500"), ("504 x", EXPIRED)])
async def test_http_statuses_have_their_grpc_names(status: str, meaning: str) -> None:
    transport, _ = over_http(http(status, b"why"))
    with pytest.raises(Failed) as failed:
        await transport.ask(0, 1)
    assert failed.value.status == meaning


async def test_a_connection_whose_answer_did_not_come_is_not_used_again() -> None:
    transport, writer = over_http(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc")
    with pytest.raises(Failed) as failed:
        await transport.ask(0, 0.01)
    assert failed.value.status == EXPIRED
    assert writer.closed
    assert not transport._idle
