"""Header blocks: what a gRPC request says before its message, and the blocks that an answer is made of.

Decompression is the library hpack's. A client sends the same few bytes for call after call, since what they stand for
is in the connection's table by then; so a block is remembered with what it meant for as long as the table stays as it
is. Answers use no table: their blocks are the same bytes on every connection.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

import grpc
import hpack
from hpack.table import HeaderTable

from nearmesh.transport.frames import Code, ConnectionFailed

# Of a request's headers, as peers are told; who sends more is refused alone. A bearer token has about 300 bytes.
MAX_TOLD_BYTES = 16 * 1024
# Still unpacked: a gateway carries many callers on one connection, and lets 60 KiB of one pass. More than this ends the
# connection, since what follows could not be understood without it.
MAX_BLOCK_BYTES = MAX_LIST_BYTES = 96 * 1024
# Blocks remembered for one connection, and how long they may be.
_MOST_KNOWN, _MOST_KNOWN_BYTES = 64, 2048

# HTTP's word for it.
TOO_LARGE = 431

# gRPC over HTTP/2: a timeout is up to eight digits and a unit.
_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT_DIGITS = 8

# In no header (RFC 9113, section 8.2.1): they would begin another line wherever it is written down.
_NEVER = (b"\r", b"\n", b"\0")

# Headers that are gRPC's own business.
_RESERVED = {"te", "content-type", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "content-length"}

Metadata = Iterable[tuple[str, str | bytes]]
Value = tuple[str, str | bytes]


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """What a call's first block said."""

    path: str = ""
    # None: the caller waits for ever.
    timeout_s: float | None = None
    encoding: str = "identity"
    metadata: tuple[Value, ...] = ()
    # An HTTP status other than 200 says that it is no gRPC request.
    http_status: int = 200
    # A header that contradicts itself or the protocol; "" for none.
    malformed: str = ""


class _Table(HeaderTable):
    """A table that counts what changes it."""

    changes = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.changes += 1
        super().add(name, value)


class HeaderReader:
    """Of one connection."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_LIST_BYTES)
        self._table = self._decoder.header_table = _Table()
        self._known: dict[bytes, RequestHeaders] = {}

    def read(self, block: bytes) -> RequestHeaders:
        """Raises ConnectionFailed for what cannot be unpacked: the tables of both sides would differ from then on."""
        known = self._known.get(block)
        if known is not None:
            return known
        before = self._state()
        try:
            pairs = list(self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError:
            why = f"headers of more than {MAX_LIST_BYTES} bytes"
            raise ConnectionFailed(Code.ENHANCE_YOUR_CALM, why) from None
        except hpack.HPACKError as error:
            raise ConnectionFailed(Code.COMPRESSION_ERROR, f"headers cannot be unpacked: {error}") from None
        found = _understood(pairs)
        if self._state() != before:
            # What blocks with references meant is no longer what they mean.
            self._known.clear()
        elif len(block) <= _MOST_KNOWN_BYTES:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[block] = found
        return found

    def _state(self) -> tuple[int, int, int]:
        return self._table.changes, self._table.maxsize, len(self._table.dynamic_entries)


def _understood(pairs: Sequence[tuple[bytes, bytes]]) -> RequestHeaders:
    # Each counts for 32 bytes more than it is long (RFC 9113, section 6.5.2).
    if sum(len(name) + len(value) + 32 for name, value in pairs) > MAX_TOLD_BYTES:
        return RequestHeaders(http_status=TOO_LARGE)
    pseudo: dict[str, str] = {}
    plain: dict[str, str] = {}
    metadata: list[Value] = []
    try:
        for raw_name, raw_value in pairs:
            if any(byte in raw_name or byte in raw_value for byte in _NEVER):
                return RequestHeaders(malformed="a header has a line end or a zero in it")
            name = raw_name.decode("ascii")
            if name.startswith(":"):
                if name in pseudo or plain or metadata:
                    return RequestHeaders(malformed=f"the header {name} is not where or what it should be")
                pseudo[name] = raw_value.decode("ascii")
            elif not name or name != name.lower():
                return RequestHeaders(malformed=f"the header name {name!r} is not in lower case")
            elif name in _RESERVED:
                plain[name] = raw_value.decode("ascii")
            elif name.endswith("-bin"):
                metadata += [(name, _from_base64(part)) for part in raw_value.split(b",")]
            else:
                metadata.append((name, raw_value.decode("latin-1")))
        timeout_s = _timeout_s(plain["grpc-timeout"]) if "grpc-timeout" in plain else None
    except (UnicodeDecodeError, ValueError) as error:
        return RequestHeaders(malformed=f"a header cannot be read: {error}")
    if not {":method", ":path", ":scheme"} <= pseudo.keys():
        return RequestHeaders(malformed="the headers :method, :path and :scheme are not all there")
    status = 200 if plain.get("content-type", "").startswith("application/grpc") else 415
    if pseudo[":method"] != "POST":
        status = 405
    encoding = plain.get("grpc-encoding", "identity")
    return RequestHeaders(pseudo[":path"], timeout_s, encoding, tuple(metadata), status)


def _timeout_s(text: str) -> float:
    """Raises ValueError."""
    digits, unit = text[:-1], text[-1:]
    if not digits.isascii() or not digits.isdigit() or len(digits) > _TIMEOUT_DIGITS or unit not in _UNITS_S:
        raise ValueError(f"grpc-timeout {text[:20]!r} is no number of H, M, S, m, u or n")
    return int(digits) * _UNITS_S[unit]


def _from_base64(text: bytes) -> bytes:
    """Padded or not. Raises ValueError."""
    try:
        return base64.b64decode(text.strip() + b"=" * (-len(text.strip()) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"a binary header is not base64: {error}") from None


# Answers.

_STATUS_200 = b"\x88"


def _literal(name: str, value: bytes) -> bytes:
    """One header, in plain letters and for no table (RFC 7541, section 6.2.2)."""
    key = name.encode("ascii")
    return b"\x00" + _length(len(key)) + key + _length(len(value)) + value


def _length(value: int) -> bytes:
    """A number with a prefix of seven bits (RFC 7541, section 5.1)."""
    if value < 0x7F:
        return bytes((value,))
    parts = bytearray((0x7F,))
    value -= 0x7F
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


# The block before the first message, without anything of the server's own.
OPENING = _STATUS_200 + _literal("content-type", b"application/grpc")
_FINE = _literal("grpc-status", b"0")


def opening(metadata: Metadata) -> bytes:
    """The block before the first message."""
    return OPENING + _written(metadata)


# The node's load, which most answers end with, is the same for a tenth of a second.
@lru_cache(maxsize=64)
def fine(metadata: tuple[Value, ...]) -> bytes:
    """The block after the last message when all went well."""
    return _FINE + _written(metadata)


def ending(code: grpc.StatusCode, message: str = "", metadata: Metadata = ()) -> bytes:
    """The block after the last message when something went wrong."""
    number: int = code.value[0]
    # Percent-encoding, as the protocol has it: everything but printable ASCII, and the percent sign.
    text = quote(message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}", errors="replace")
    parts = _literal("grpc-status", b"%d" % number) + _literal("grpc-message", text.encode("ascii"))
    return parts + _written(metadata)


def accepts(encodings: Iterable[str]) -> bytes:
    """What a caller is told who compresses in another way."""
    return _literal("grpc-accept-encoding", ",".join(encodings).encode("ascii"))


def plain_http(status: int) -> bytes:
    """For a caller who does not speak gRPC."""
    return _literal(":status", b"%d" % status)


def _written(metadata: Metadata) -> bytes:
    return b"".join(_literal(name, _value(name, value)) for name, value in metadata)


def _value(name: str, value: str | bytes) -> bytes:
    if name.endswith("-bin"):
        return base64.b64encode(value if isinstance(value, bytes) else value.encode()).rstrip(b"=")
    return value if isinstance(value, bytes) else value.encode("utf-8")
