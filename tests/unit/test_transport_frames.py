"""Frames as bytes: what is written is what another implementation reads, and numbers of the wrong size are refused."""

from __future__ import annotations

import hyperframe.frame as reference
import pytest
from h2.errors import ErrorCodes
from hypothesis import given
from hypothesis import strategies as st

from nearmesh.transport import frames
from nearmesh.transport.frames import Code, ConnectionFailed

# What hyperframe calls each kind.
KINDS = {
    "DataFrame": frames.DATA,
    "HeadersFrame": frames.HEADERS,
    "PriorityFrame": frames.PRIORITY,
    "RstStreamFrame": frames.RST_STREAM,
    "SettingsFrame": frames.SETTINGS,
    "PushPromiseFrame": frames.PUSH_PROMISE,
    "PingFrame": frames.PING,
    "GoAwayFrame": frames.GOAWAY,
    "WindowUpdateFrame": frames.WINDOW_UPDATE,
    "ContinuationFrame": frames.CONTINUATION,
}


def parsed(data: bytes) -> reference.Frame:
    """One frame, whole."""
    found, length = reference.Frame.parse_frame_header(memoryview(data[:9]))
    assert length == len(data) - frames.HEAD_BYTES
    found.parse_body(memoryview(data[9:]))
    return found


@pytest.mark.parametrize("name", KINDS)
def test_kinds_have_the_numbers_of_the_protocol(name: str) -> None:
    assert getattr(reference, name).type == KINDS[name]


@pytest.mark.parametrize("code", Code)
def test_codes_have_the_numbers_of_the_protocol(code: Code) -> None:
    assert ErrorCodes(code.value).name == code.name


SETTINGS = {
    "MAX_CONCURRENT_STREAMS": frames.MAX_CONCURRENT_STREAMS,
    "INITIAL_WINDOW_SIZE": frames.INITIAL_WINDOW_SIZE,
    "MAX_FRAME_SIZE": frames.MAX_FRAME_SIZE,
    "MAX_HEADER_LIST_SIZE": frames.MAX_HEADER_LIST_SIZE,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_have_the_numbers_of_the_protocol(name: str) -> None:
    assert getattr(reference.SettingsFrame, name) == SETTINGS[name]


@given(
    length=st.integers(0, frames.MOST_FRAME_BYTES),
    kind=st.integers(0, 9),
    flags=st.integers(0, 255),
    stream=st.integers(0, frames.MOST_WINDOW_BYTES),
)
def test_a_head_says_what_it_was_given(length: int, kind: int, flags: int, stream: int) -> None:
    data = frames.head(length, kind, flags, stream)
    assert len(data) == frames.HEAD_BYTES
    assert (data[:3], data[3], data[4], data[5:]) == (
        length.to_bytes(3, "big"),
        kind,
        flags,
        stream.to_bytes(4, "big"),
    )


@pytest.mark.parametrize(
    "data, kind, expected",
    [
        (frames.frame(frames.DATA, frames.END_STREAM, 3, b"abc"), "Data", {"data": b"abc", "stream_id": 3}),
        (frames.frame(frames.HEADERS, frames.END_HEADERS, 5, b"h"), "Headers", {"data": b"h", "stream_id": 5}),
        (frames.frame(frames.PING, frames.ACK, 0, b"12345678"), "Ping", {"opaque_data": b"12345678"}),
        (frames.settings({3: 7, 4: 2**31 - 1}), "Settings", {"settings": {3: 7, 4: 2**31 - 1}, "stream_id": 0}),
        (frames.settings({}), "Settings", {"settings": {}}),
        (frames.reset(2**31 - 1, Code.CANCEL), "RstStream", {"stream_id": 2**31 - 1, "error_code": 8}),
        (
            frames.go_away(9, Code.ENHANCE_YOUR_CALM, "calm"),
            "GoAway",
            {"stream_id": 0, "last_stream_id": 9, "error_code": 11, "additional_data": b"calm"},
        ),
        (frames.window_update(0, 2**31 - 1), "WindowUpdate", {"stream_id": 0, "window_increment": 2**31 - 1}),
        (frames.window_update(7, 1), "WindowUpdate", {"stream_id": 7, "window_increment": 1}),
    ],
)
def test_another_implementation_reads_what_is_written(data: bytes, kind: str, expected: dict[str, object]) -> None:
    found = parsed(data)
    assert type(found).__name__ == f"{kind}Frame"
    assert {key: getattr(found, key) for key in expected} == expected


@pytest.mark.parametrize(
    "data, flags",
    [
        (frames.frame(frames.DATA, frames.END_STREAM | frames.PADDED, 1, b"\0"), {"END_STREAM", "PADDED"}),
        (
            frames.frame(frames.HEADERS, frames.END_HEADERS | frames.PRIORITIZED, 1, b"\0\0\0\0\0"),
            {"END_HEADERS", "PRIORITY"},
        ),
        (frames.frame(frames.SETTINGS, frames.ACK, 0), {"ACK"}),
        (frames.frame(frames.PING, frames.ACK, 0, bytes(8)), {"ACK"}),
    ],
)
def test_flags_are_those_of_the_protocol(data: bytes, flags: set[str]) -> None:
    assert set(parsed(data).flags) == flags


def test_a_long_reason_is_cut() -> None:
    found = parsed(frames.go_away(1, Code.PROTOCOL_ERROR, "é" * 500))
    assert isinstance(found, reference.GoAwayFrame) and len(found.additional_data) == 200


@given(st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)), max_size=20))
def test_settings_are_read_in_order_and_as_often_as_they_are_said(pairs: list[tuple[int, int]]) -> None:
    contents = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in pairs)
    assert frames.read_settings(contents) == pairs


@pytest.mark.parametrize("size", [1, 5, 7, 11, 13])
def test_settings_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(ConnectionFailed, match=f"settings of {size} bytes") as caught:
        frames.read_settings(bytes(size))
    assert caught.value.code is Code.FRAME_SIZE_ERROR


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1])
def test_a_number_is_read(value: int) -> None:
    assert frames.uint32(value.to_bytes(4, "big"), "WINDOW_UPDATE") == value


@pytest.mark.parametrize("size", [0, 3, 5, 8])
def test_a_number_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ConnectionFailed, match=f"a RST_STREAM frame of {size} bytes") as caught:
        frames.uint32(bytes(size), "RST_STREAM")
    assert (caught.value.code, caught.value.why) == (Code.FRAME_SIZE_ERROR, f"a RST_STREAM frame of {size} bytes")
