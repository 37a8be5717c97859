"""Messages out of the contents of a stream: however they are cut, compressed or not, and never more than allowed."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearmesh.errors import InvalidInput, MeshError, TooLarge, Unsupported
from nearmesh.transport.messages import ENCODINGS, Messages, Packed
from tests.http2_peer import message

MOST_BYTES = 200_000
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


def fed(messages: Messages, *parts: bytes) -> list[bytes]:
    """What is complete after all parts; the memory of each is another's afterwards."""
    found = []
    for part in parts:
        memory = bytearray(part)
        found += messages.feed(memoryview(memory))
        memory[:] = b"\xee" * len(memory)
    return [bytes(messages.opened(each) if isinstance(each, Packed) else each) for each in found]


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in at} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


BODIES = st.one_of(st.binary(max_size=40), st.builds(bytes, st.integers(60_000, 70_000)))


@given(st.lists(st.tuples(BODIES, st.booleans()), max_size=4), st.sampled_from(["gzip", "deflate"]), st.data())
def test_messages_are_the_same_however_their_bytes_are_cut(
    bodies: list[tuple[bytes, bool]], encoding: str, choice: st.DataObject
) -> None:
    pack = COMPRESSED[encoding]
    sent = b"".join(message(pack(body), compressed=1) if packed else message(body) for body, packed in bodies)
    parts = cut(sent, choice.draw(st.lists(st.integers(0, 2**20), max_size=12)))
    messages = Messages(MOST_BYTES, encoding)
    assert fed(messages, *parts) == [body for body, _ in bodies]
    assert not messages.partial and messages.missing_bytes == 0 and messages.begun() == b""


def test_bytes_may_come_one_at_a_time() -> None:
    sent = message(b"abc") + message(b"") + message(gzip.compress(b"def", mtime=0), compressed=1)
    assert fed(Messages(10_000, "gzip"), *(bytes((byte,)) for byte in sent)) == [b"abc", b"", b"def"]


@pytest.mark.parametrize("size", [10, 100_000])
def test_what_is_missing_is_known(size: int) -> None:
    sent, messages = message(bytes(range(10)) * (size // 10)), Messages(MOST_BYTES, "identity")
    assert (messages.partial, messages.missing_bytes) == (False, 0)
    assert fed(messages, sent[:4]) == [] and (messages.partial, messages.missing_bytes) == (True, 0)
    assert fed(messages, sent[4:5]) == [] and (messages.partial, messages.missing_bytes) == (True, size)
    assert messages.begun() == b""
    assert fed(messages, sent[5:8]) == [] and (messages.partial, messages.missing_bytes) == (True, size - 3)
    assert messages.begun() == sent[5:8]
    assert fed(messages, sent[8:]) == [sent[5:]] and (messages.partial, messages.missing_bytes) == (False, 0)


@pytest.mark.parametrize("at", [0, 1, 7, 63, 64, 1001])
def test_the_bulk_of_a_large_message_is_aligned(at: int) -> None:
    body = bytes(range(250)) * 400
    messages = Messages(MOST_BYTES, "identity", lambda begun: at if begun == body[:2000] else 0)
    sent = message(body)
    assert messages.feed(memoryview(sent[:2005])) == []
    (found,) = messages.feed(memoryview(sent[2005:]))
    assert found == body
    assert np.frombuffer(found, np.uint8)[at:].ctypes.data % 64 == 0


def test_the_beginning_of_a_compressed_message_says_nothing() -> None:
    messages = Messages(MOST_BYTES, "gzip")
    sent = message(gzip.compress(b"abc", mtime=0), compressed=1)
    assert fed(messages, sent[:-1]) == [] and messages.begun() == b"" and messages.missing_bytes == 1


@pytest.mark.parametrize("first", [0, 5, 6])
def test_a_message_may_have_as_many_bytes_as_are_allowed(first: int) -> None:
    sent = message(bytes(MOST_BYTES))
    assert fed(Messages(MOST_BYTES, "identity"), sent[:first], sent[first:]) == [bytes(MOST_BYTES)]
    for pack in COMPRESSED.items():
        sent = message(pack[1](bytes(MOST_BYTES)), compressed=1)
        assert fed(Messages(MOST_BYTES, pack[0]), sent[:first], sent[first:]) == [bytes(MOST_BYTES)]


# Without a time, or each worker would name its cases otherwise.
PACKED = gzip.compress(b"some words" * 10, mtime=0)
# Random to whoever compresses it, so it stays long.
FLIPPED = PACKED[:15] + bytes((PACKED[15] ^ 0x55,)) + PACKED[16:]


@pytest.mark.parametrize(
    "sent, encoding, error, why",
    [
        (message(bytes(MOST_BYTES + 1)), "identity", TooLarge, "of 200001 bytes; 200000 are allowed"),
        (b"\0\xff\xff\xff\xff", "identity", TooLarge, "of 4294967295 bytes"),
        (b"\1\xff\xff\xff\xff", "gzip", TooLarge, "of 4294967295 bytes"),
        (message(gzip.compress(bytes(MOST_BYTES + 1)), compressed=1), "gzip", TooLarge, "more than 200000 bytes"),
        (message(zlib.compress(bytes(MOST_BYTES + 1)), compressed=1), "deflate", TooLarge, "more than 200000"),
        (message(PACKED, compressed=1), "identity", Unsupported, "compressed by 'identity'; identity, gzip, deflate"),
        (message(PACKED, compressed=1), "br", Unsupported, "compressed by 'br'"),
        (message(PACKED, compressed=1), "deflate", InvalidInput, "not compressed by deflate"),
        (message(zlib.compress(b"a"), compressed=1), "gzip", InvalidInput, "not compressed by gzip"),
        (message(b"plain text", compressed=1), "gzip", InvalidInput, "not compressed by gzip"),
        (message(FLIPPED, compressed=1), "gzip", InvalidInput, "not compressed by gzip"),
        (message(PACKED[:-1], compressed=1), "gzip", InvalidInput, "ends too early"),
        (message(PACKED[:-9], compressed=1), "gzip", InvalidInput, "ends too early"),
        (message(b"", compressed=1), "gzip", InvalidInput, "ends too early"),
    ],
)
@pytest.mark.parametrize("step", [1, 2**20])
def test_what_is_no_message_is_refused(sent: bytes, encoding: str, error: type[MeshError], why: str, step: int) -> None:
    step = max(step, len(sent) // 50)
    with pytest.raises(error, match=why):
        fed(Messages(MOST_BYTES, encoding), *(sent[at : at + step] for at in range(0, len(sent), step)))


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_message_that_would_grow_without_end_takes_no_memory_for_it(encoding: str) -> None:
    """A hundred megabytes in a hundred kilobytes."""
    sent = message(COMPRESSED[encoding](bytes(100_000_000)), compressed=1)
    assert len(sent) < MOST_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            fed(Messages(MOST_BYTES, encoding), sent)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * MOST_BYTES


@pytest.mark.parametrize("size", [0, 1])
def test_many_small_messages_take_little_more_memory_than_their_bytes(size: int) -> None:
    """What waits for a slow method is bounded by a window of bytes, not by a number of messages."""
    sent = message(bytes(size)) * 20_000
    tracemalloc.start()
    try:
        found = Messages(MOST_BYTES, "identity").feed(memoryview(sent))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 20_000
    assert kept < 15 * len(sent)


def test_encodings_are_those_that_can_be_read() -> None:
    assert {"identity", *COMPRESSED} == {*ENCODINGS}
