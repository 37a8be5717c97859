"""Opens files that others made: none is taken to be what its name says, nor as small as it looks."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nearmesh.ingest.document import Unreadable

# Of a file that is one document; its text is in memory a few times over.
MAX_FILE_BYTES = 64 * 1024 * 1024
# Of a file of records, one record: a text, or a vector of some thousands of numbers written out.
MAX_LINE_BYTES = 4 * 1024 * 1024
# What is looked at to tell text from other things.
_HEAD_BYTES = 8192
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Encodings in which every other byte may be zero.
_WIDE = ("utf-16", "utf-32")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A plain file; opening a pipe would wait for who writes into it. Raises Unreadable."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(number, "rb") as file:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise Unreadable("not a plain file")
            yield file
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None


def read_bytes(path: Path) -> bytes:
    """All of a file. Raises Unreadable, also for one that is too large."""
    with opened(path) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise Unreadable(f"above the limit of {MAX_FILE_BYTES // 1024**2} MiB; import it in pieces")
    return data


def decode(data: bytes, encoding: str) -> str:
    """A text with plain line ends. A mark at its beginning tells more than `encoding`. Raises Unreadable."""
    if data.startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"
    elif data.startswith(_UTF16):
        encoding = "utf-16"
    elif not codecs.lookup(encoding).name.startswith(_WIDE):
        refuse_binary(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise Unreadable(f"byte {error.start} is not {encoding}; --encoding names another one") from None
    return clean(text.replace("\r\n", "\n").replace("\r", "\n"))


def refuse_binary(data: bytes) -> None:
    """Raises Unreadable for what is no text, by its beginning."""
    if b"\0" in data[:_HEAD_BYTES]:
        raise Unreadable("not text: it has zero bytes")


def clean(text: str) -> str:
    """Without what no message and no store can carry: halves of surrogate pairs, and the zero character."""
    if "\0" in text:
        text = text.replace("\0", " ")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def lines(file: BinaryIO, encoding: str) -> Iterator[tuple[int, str | Unreadable]]:
    """Numbered from 1, each decoded by itself, so that one that is wrong does not take the others with it."""
    number, first = 0, True
    while data := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if first:
            first = False
            _refuse_head(data)
            data = data.removeprefix(codecs.BOM_UTF8)
        if len(data) > MAX_LINE_BYTES:
            _skip_line(file, data)
            yield number, Unreadable(f"above the limit of {MAX_LINE_BYTES // 1024**2} MiB for a line")
            continue
        try:
            yield number, data.decode(encoding)
        except UnicodeDecodeError as error:
            yield number, Unreadable(f"byte {error.start} is not {encoding}; --encoding names another one")


def _refuse_head(data: bytes) -> None:
    if data.startswith(_UTF16):
        raise Unreadable("in UTF-16, in which lines are not read; save it as UTF-8")
    refuse_binary(data)


def _skip_line(file: BinaryIO, data: bytes) -> None:
    while data and not data.endswith(b"\n"):
        data = file.readline(MAX_LINE_BYTES)
