"""Header blocks: what a request says, whether its block was seen before or not, and what every client reads of answers.

The library hpack is the opposite side: it writes what is read here, and reads what is written.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import grpc
import hpack
import pytest
from hpack.hpack import encode_integer
from hypothesis import given
from hypothesis import strategies as st

from nearmesh.transport import headers
from nearmesh.transport.frames import Code, ConnectionFailed
from nearmesh.transport.headers import HeaderReader, RequestHeaders
from tests.http2_peer import OPENING, block

# POST, http and a path, by the static table: the least that a request says.
LEAST = b"\x83\x86\x04\x02/m\x0f\x10\x10application/grpc"


def literal(name: bytes, value: bytes, *, kept: bool = False) -> bytes:
    """A header with a name of its own; `kept` enters it into the table."""
    return (b"\x40" if kept else b"\x00") + bytes((len(name),)) + name + bytes((len(value),)) + value


def size_update(size: int) -> bytes:
    found = encode_integer(size, 5)
    found[0] |= 0x20
    return bytes(found)


def read(*pairs: tuple[str, str | bytes], opening: Any = OPENING) -> RequestHeaders:
    return HeaderReader().read(block(*pairs, opening=opening))


# Blocks that come again.

# The newest entry of the table.
NEWEST = b"\xbe"


def begun() -> tuple[HeaderReader, bytes]:
    """A reader whose table holds x: 1, and a block that refers to it."""
    reader = HeaderReader()
    reader.read(LEAST + literal(b"x", b"1", kept=True))
    return reader, LEAST + NEWEST


def test_a_block_that_comes_again_is_not_unpacked_again() -> None:
    reader, again = begun()
    first = reader.read(again)
    assert first.metadata == (("x", "1"),)
    assert reader.read(again) is first
    assert reader.read(LEAST).metadata == () and reader.read(again) is first


def test_a_block_that_enters_a_header_is_unpacked_each_time() -> None:
    """Each time it makes the table another one."""
    reader = HeaderReader()
    entering = LEAST + literal(b"x", b"1", kept=True)
    for number in range(3):
        reader.read(entering)
        assert reader.read(LEAST + bytes((0xBE + number,))).metadata == (("x", "1"),)


GONE = None


@pytest.mark.parametrize(
    "change, now",
    [
        (LEAST + literal(b"y", b"2", kept=True), (("y", "2"),)),
        (LEAST + literal(b"x", b"1", kept=True), (("x", "1"),)),
        (LEAST + literal(b"z" * 120, b"z" * 120, kept=True) * 15, (("z" * 120, "z" * 120),)),
        # Too large for the table: it is not entered, and everything else leaves.
        (size_update(100) + LEAST + literal(b"z" * 90, b"z", kept=True), GONE),
        (size_update(2000) + LEAST, (("x", "1"),)),
        (size_update(33) + LEAST, GONE),
        (size_update(0) + LEAST, GONE),
        (size_update(0) + size_update(4096) + LEAST, GONE),
        (size_update(33) + size_update(4096) + LEAST, GONE),
        (size_update(0) + size_update(4096) + LEAST + literal(b"y", b"2", kept=True), (("y", "2"),)),
        (size_update(0) + size_update(4096) + LEAST + literal(b"x", b"1", kept=True), (("x", "1"),)),
    ],
    ids=[
        "entry",
        "same entry",
        "eviction by entries",
        "entry too large",
        "smaller",
        "eviction",
        "to 0",
        "to 0 and back",
        "eviction and back",
        "to 0, back, entry",
        "to 0, back, same entry",
    ],
)
def test_a_change_of_the_table_forgets_what_was_known(change: bytes, now: Any) -> None:
    reader, again = begun()
    before = reader.read(again)
    reader.read(change)
    if now is GONE:
        with pytest.raises(ConnectionFailed, match="table index") as caught:
            reader.read(again)
        assert caught.value.code is Code.COMPRESSION_ERROR
    else:
        after = reader.read(again)
        assert after is not before and after.metadata == now
        assert reader.read(again) is after


@pytest.mark.parametrize("kept", [1, 500])
def test_blocks_are_known_by_all_their_bytes(kept: int) -> None:
    """More of them than are remembered."""
    reader = HeaderReader()
    for _ in range(3):
        for number in range(kept):
            assert reader.read(LEAST + literal(b"n", b"%d" % number)).metadata == (("n", str(number)),)


def test_long_blocks_are_read_and_not_kept() -> None:
    reader = HeaderReader()
    long = LEAST + literal(b"long", b"v" * 120) * 20
    assert reader.read(long) == reader.read(long)
    assert reader.read(long) is not reader.read(long)


NAMES, VALUES = [b"a", b"b", b"k" * 40], [b"", b"1", b"2", b"v" * 60]
FIELDS = st.one_of(
    # Of the dynamic table, of entries that may or may not be there.
    st.integers(62, 66).map(lambda index: bytes((0x80 | index,))),
    st.builds(literal, st.sampled_from(NAMES), st.sampled_from(VALUES), kept=st.booleans()),
    # A new value for the name of an entry.
    st.builds(lambda index, value: bytes((0x40 | index, len(value))) + value, st.just(62), st.sampled_from(VALUES)),
)
SIZES = st.sampled_from([0, 33, 100, 150, 4096]).map(size_update)
BLOCKS = st.builds(
    lambda sizes, fields: b"".join(sizes) + LEAST + b"".join(fields),
    st.lists(SIZES, max_size=2),
    st.lists(FIELDS, max_size=3),
)


@given(st.lists(BLOCKS, min_size=1, max_size=5), st.lists(st.integers(0, 4), max_size=40))
def test_any_sequence_of_blocks_means_what_it_means_without_a_memory(pool: list[bytes], order: list[int]) -> None:
    reader, plain = HeaderReader(), hpack.Decoder()
    for number in order:
        sent = pool[number % len(pool)]
        try:
            pairs = plain.decode(sent, raw=True)
        except hpack.HPACKError:
            with pytest.raises(ConnectionFailed) as caught:
                reader.read(sent)
            assert caught.value.code is Code.COMPRESSION_ERROR
            return
        own = tuple((name.decode(), value.decode()) for name, value in list(pairs)[4:])
        assert reader.read(sent) == RequestHeaders(path="/m", metadata=own)


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_are_read_or_refused(blocks: list[bytes]) -> None:
    reader = HeaderReader()
    for sent in blocks:
        try:
            found = reader.read(sent)
        except ConnectionFailed as error:
            assert error.code in (Code.COMPRESSION_ERROR, Code.ENHANCE_YOUR_CALM)
            return
        assert found.path or found.malformed


# What a request says.


def test_a_request_is_read() -> None:
    found = read(("grpc-timeout", "1S"), ("grpc-encoding", "gzip"), ("authorization", "Bearer t"), ("x", b"\xe9"))
    assert found == RequestHeaders("/test.Service/Method", 1.0, "gzip", (("authorization", "Bearer t"), ("x", "é")))


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("1H", 3600.0),
        ("2M", 120.0),
        ("3S", 3.0),
        ("250m", 0.25),
        ("4u", 4e-6),
        ("5n", 5e-9),
        ("0S", 0.0),
        ("00000001S", 1.0),
        ("99999999H", 99999999 * 3600.0),
    ],
)
def test_a_timeout_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert read(("grpc-timeout", text)).timeout_s == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "S", "1", "1s", "1h", "-1S", "+1S", "1.5S", "1e3S", " 1S", "1S ", "1_0S", "123456789S", "1SS", "²S"]
)
def test_any_other_timeout_is_malformed(text: str) -> None:
    assert "header cannot be read" in read(("grpc-timeout", text)).malformed


@pytest.mark.parametrize(
    "text, values",
    [
        ("AAEC", [b"\0\1\2"]),
        ("AAE=", [b"\0\1"]),
        ("AAE", [b"\0\1"]),
        ("AA", [b"\0"]),
        ("+/+/", [b"\xfb\xff\xbf"]),
        ("", [b""]),
        ("AAE,AA==,AAEC", [b"\0\1", b"\0", b"\0\1\2"]),
        ("AAE, AA", [b"\0\1", b"\0"]),
    ],
)
def test_binary_headers_are_bytes(text: str, values: list[bytes]) -> None:
    assert read(("trace-bin", text)).metadata == tuple(("trace-bin", value) for value in values)


@pytest.mark.parametrize("text", ["A", "AAAAA", "A===", "-_-_", "AA EC", "AA=C", "é", "AAE,?"])
def test_binary_headers_that_are_not_base64_are_malformed(text: str) -> None:
    assert "header cannot be read" in read(("trace-bin", text)).malformed


def without(name: str) -> list[tuple[str, str]]:
    return [pair for pair in OPENING if pair[0] != name]


@pytest.mark.parametrize(
    "opening, why",
    [
        (without(":method"), "are not all there"),
        (without(":path"), "are not all there"),
        (without(":scheme"), "are not all there"),
        ([], "are not all there"),
        ([*OPENING, (":path", "/other")], "header :path is not"),
        ([OPENING[0], *OPENING], "header :method is not"),
        ([("x", "1"), *OPENING], "header :method is not"),
        ([("te", "trailers"), *OPENING], "header :method is not"),
        ([*OPENING, ("X", "1")], "'X' is not in lower case"),
        ([*OPENING, ("", "1")], "'' is not in lower case"),
        ([*OPENING, ("x", "a\r")], "line end or a zero"),
        ([*OPENING, ("x", "a\n:path: /")], "line end or a zero"),
        ([*OPENING, ("x", "\0")], "line end or a zero"),
        ([*OPENING, ("x\n", "1")], "line end or a zero"),
        ([*OPENING, (b"\xff", b"1")], "cannot be read"),
        ([*without(":path"), (":path", "/é")], "not"),
    ],
)
def test_a_request_that_is_none_is_malformed(opening: Any, why: str) -> None:
    assert why in read(opening=opening).malformed


@pytest.mark.parametrize(
    "opening, status",
    [
        (OPENING, 200),
        ([*without("content-type"), ("content-type", "application/grpc+proto")], 200),
        ([*without("content-type"), ("content-type", "application/json")], 415),
        (without("content-type"), 415),
        ([(":method", "GET"), *without(":method")], 405),
        ([*OPENING, ("x", "v" * 17_000)], 431),
        ([*OPENING, *[("x", "")] * 500], 431),
        ([(":method", "GET"), (":scheme", "http"), (":path", "/")], 405),
    ],
)
def test_what_is_http_and_not_grpc_has_a_status_for_it(opening: Any, status: int) -> None:
    found = read(opening=opening)
    assert (found.http_status, found.malformed) == (status, "")


@pytest.mark.parametrize(
    "sent, code",
    [
        (LEAST + b"\xbe", Code.COMPRESSION_ERROR),
        (LEAST + b"\x80", Code.COMPRESSION_ERROR),
        (LEAST + b"\x00\x7f", Code.COMPRESSION_ERROR),
        (LEAST + b"\x00\x05ab", Code.COMPRESSION_ERROR),
        (LEAST + b"\xff\xff\xff\xff\xff\xff\xff", Code.COMPRESSION_ERROR),
        (size_update(4097) + LEAST, Code.COMPRESSION_ERROR),
        (LEAST + size_update(0), Code.COMPRESSION_ERROR),
        # Huffman codes that end with what is no padding.
        (LEAST + b"\x00\x81\x00\x01a", Code.COMPRESSION_ERROR),
        # One large entry, and a byte for each time it is meant.
        (LEAST + b"\x40\x01a\x7f\xb0\x1e" + b"v" * 4015 + NEWEST * 100, Code.ENHANCE_YOUR_CALM),
        # Each header counts 32 bytes, however short.
        (LEAST + literal(b"a", b"") * 3000, Code.ENHANCE_YOUR_CALM),
    ],
)
def test_a_block_that_cannot_be_unpacked_ends_the_connection(sent: bytes, code: Code) -> None:
    with pytest.raises(ConnectionFailed) as caught:
        HeaderReader().read(sent)
    assert caught.value.code is code


# Answers.


def decoded(sent: bytes) -> list[tuple[str, str]]:
    decoder = hpack.Decoder()
    found = [(name, value) for name, value in decoder.decode(sent)]
    assert not decoder.header_table.dynamic_entries, "the same bytes must mean the same on every connection"
    return found


@pytest.mark.parametrize("code", grpc.StatusCode)
def test_an_ending_says_what_went_wrong(code: grpc.StatusCode) -> None:
    found = decoded(headers.ending(code, "no room", (("nearmesh-reason", "OVERLOADED"), ("x-bin", b"\0\1"))))
    assert found == [
        ("grpc-status", str(code.value[0])),
        ("grpc-message", "no room"),
        ("nearmesh-reason", "OVERLOADED"),
        ("x-bin", "AAE"),
    ]


@given(st.text(max_size=600))
def test_any_message_arrives(message: str) -> None:
    status, told = decoded(headers.ending(grpc.StatusCode.INTERNAL, message))
    assert (status, told[0]) == (("grpc-status", "13"), "grpc-message")
    assert all(0x20 <= ord(letter) < 0x7F for letter in told[1])
    assert unquote(told[1], errors="strict") == message


@pytest.mark.parametrize(
    "message, written",
    [
        ("plain text, 'quoted' (so)", "plain text, 'quoted' (so)"),
        ("100 %", "100 %25"),
        ("%41", "%2541"),
        ("a\nb\tc\0", "a%0Ab%09c%00"),
        ("é€", "%C3%A9%E2%82%AC"),
        ("~\x7f", "~%7F"),
    ],
)
def test_messages_are_percent_encoded_as_the_protocol_has_it(message: str, written: str) -> None:
    assert decoded(headers.ending(grpc.StatusCode.INTERNAL, message))[1] == ("grpc-message", written)


def test_a_message_about_a_file_with_an_unreadable_name_is_told_all_the_same() -> None:
    """Python has lone surrogates for bytes of a path that are no UTF-8."""
    assert decoded(headers.ending(grpc.StatusCode.INTERNAL, "no file a\udcff"))[0] == ("grpc-status", "13")


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 16383, 16384, 20000])
def test_values_of_any_length_are_written(size: int) -> None:
    assert decoded(headers.fine((("x", "v" * size),))) == [("grpc-status", "0"), ("x", "v" * size)]


@given(st.dictionaries(st.from_regex(r"x[a-z]{1,9}(-bin)?", fullmatch=True), st.binary(max_size=50), max_size=5))
def test_what_an_answer_adds_is_read_as_it_was_meant(metadata: dict[str, bytes]) -> None:
    added = tuple((name, value if name.endswith("-bin") else value.hex()) for name, value in metadata.items())
    asked = HeaderReader().read(LEAST + headers.fine(added).removeprefix(headers.fine(())))
    assert asked.metadata == added


def test_other_blocks_are_what_they_say() -> None:
    assert decoded(headers.OPENING) == [(":status", "200"), ("content-type", "application/grpc")]
    assert decoded(headers.fine(())) == [("grpc-status", "0")]
    assert decoded(headers.accepts(("identity", "gzip"))) == [("grpc-accept-encoding", "identity,gzip")]
    assert decoded(headers.plain_http(415)) == [(":status", "415")]
