"""HTTP/2 frames as bytes (RFC 9113, sections 4 and 6): their numbers, and how each kind is written."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum

# What a client sends before its first frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

# Flags; the first one means either, depending on the kind.
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, PRIORITIZED = 0x4, 0x8, 0x20

# Settings.
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 3, 4, 5, 6

HEAD_BYTES = 9
# gRPC's own frame around each message, within the contents: whether it is compressed, and its length.
PREFIX_BYTES = 5
# A frame's length and window sizes are at most these; the second two are what a peer has before it says otherwise.
MOST_FRAME_BYTES, MOST_WINDOW_BYTES = 2**24 - 1, 2**31 - 1
FRAME_BYTES, WINDOW_BYTES = 2**14, 2**16 - 1

# Upper half and lower byte of the length, kind, flags, stream.
HEAD = struct.Struct(">HBBBI")
_UINT32 = struct.Struct(">I")
_SETTING = struct.Struct(">HI")


class Code(IntEnum):
    """Why a stream or a connection ends (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class ConnectionFailed(Exception):
    """The peer broke the protocol: nothing that it sends from here on can be understood, or should be."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


def head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes before a frame's contents."""
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, contents: bytes = b"") -> bytes:
    """A whole frame."""
    return head(len(contents), kind, flags, stream) + contents


def settings(values: Mapping[int, int]) -> bytes:
    """What this side asks of the other."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in values.items()))


def read_settings(contents: bytes) -> list[tuple[int, int]]:
    """Pairs of setting and value, in order. Raises ConnectionFailed."""
    if len(contents) % _SETTING.size:
        raise ConnectionFailed(Code.FRAME_SIZE_ERROR, f"settings of {len(contents)} bytes")
    return list(_SETTING.iter_unpack(contents))


def reset(stream: int, code: Code) -> bytes:
    """Ends one stream at once."""
    return frame(RST_STREAM, 0, stream, _UINT32.pack(code))


def go_away(last_stream: int, code: Code, why: str = "") -> bytes:
    """Streams above `last_stream` are not looked at."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream, code) + why.encode()[:200])


def window_update(stream: int, more_bytes: int) -> bytes:
    """The other side may send so much more; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, _UINT32.pack(more_bytes))


def uint32(contents: bytes, kind: str) -> int:
    """What a frame of one number says. Raises ConnectionFailed."""
    if len(contents) != _UINT32.size:
        raise ConnectionFailed(Code.FRAME_SIZE_ERROR, f"a {kind} frame of {len(contents)} bytes")
    return int(_UINT32.unpack(contents)[0])
