"""gRPC's messages out of the contents of a stream: five bytes say how long each is, and whether it is compressed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nearmesh.errors import InvalidInput, TooLarge, Unsupported
from nearmesh.transport.frames import PREFIX_BYTES

# zlib's name for each way to compress: the size of its window, and 16 more for gzip's header.
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# Ways to compress that callers may use.
ENCODINGS = ("identity", *_WINDOW_BITS)
# Memory of messages from this size on is taken without being filled with zeros first.
_LARGE_BYTES = 64 * 1024
# Where compiled code likes its arrays to begin: at a multiple of a cache line.
_ALIGNED_BYTES = 64


@dataclass(frozen=True, slots=True)
class Packed:
    """A message as it came, compressed: it is unpacked when its turn comes, so that those that wait stay small."""

    body: memoryview

    def __len__(self) -> int:
        return len(self.body)


Message = bytes | memoryview | Packed


class Messages:
    """Of one stream."""

    def __init__(self, most_bytes: int, encoding: str, contents_at: Callable[[memoryview], int] | None = None) -> None:
        """`contents_at` says from a large message's first bytes where its bulk begins: that is aligned in memory."""
        self._contents_at = contents_at
        self._most_bytes = most_bytes
        self._encoding = encoding
        self._prefix = b""
        # The message that is being received, and how much of it is there.
        self._body: memoryview | None = None
        self._filled = 0

    @property
    def partial(self) -> bool:
        """A message has begun and is not complete."""
        return self._body is not None or bool(self._prefix)

    @property
    def missing_bytes(self) -> int:
        """Of the message that is being received; 0 if none is."""
        return len(self._body) - self._filled if self._body is not None else 0

    def begun(self) -> memoryview:
        """What is there of the message that is being received; empty if it is compressed."""
        if self._body is None or self._prefix[0]:
            return memoryview(b"")
        return self._body[: self._filled]

    def feed(self, part: memoryview) -> list[Message]:
        """The messages that are complete with `part`. Raises TooLarge, InvalidInput, Unsupported."""
        size = len(part)
        whole = self._body is None and not self._prefix and size >= PREFIX_BYTES and not part[0]
        # Nearly always: one message, and nothing else.
        if whole and int.from_bytes(part[1:PREFIX_BYTES], "big") == size - PREFIX_BYTES <= self._most_bytes:
            return [bytes(part[PREFIX_BYTES:])]
        found: list[Message] = []
        while part:
            if self._body is None:
                missing = PREFIX_BYTES - len(self._prefix)
                self._prefix += bytes(part[:missing])
                part = part[missing:]
                if len(self._prefix) < PREFIX_BYTES:
                    break
                self._body, self._filled = self._memory(int.from_bytes(self._prefix[1:], "big"), part), 0
            count = min(len(part), len(self._body) - self._filled)
            self._body[self._filled : self._filled + count] = part[:count]
            self._filled += count
            part = part[count:]
            if self._filled == len(self._body):
                found.append(self._complete(self._body))
                self._body, self._prefix = None, b""
        return found

    def _memory(self, size: int, begun: memoryview) -> memoryview:
        if size > self._most_bytes:
            raise TooLarge(f"a message of {size} bytes; {self._most_bytes} are allowed here")
        if size < _LARGE_BYTES:
            return memoryview(bytearray(size))
        memory = np.empty(size + _ALIGNED_BYTES, np.uint8)
        contents = memory.ctypes.data + (self._contents_at(begun[:size]) if self._contents_at else 0)
        start = -contents % _ALIGNED_BYTES
        return memory.data[start : start + size]

    def _complete(self, body: memoryview) -> Message:
        if self._prefix[0]:
            return Packed(body)
        # Ten times smaller than the view with its array, which counts where messages are small and many wait.
        return body if len(body) >= _LARGE_BYTES else bytes(body)

    def opened(self, message: Packed) -> bytes:
        """Its contents; blocks, without Python's lock. Raises TooLarge, InvalidInput, Unsupported."""
        bits = _WINDOW_BITS.get(self._encoding)
        if bits is None:
            raise Unsupported(f"a message compressed by {self._encoding!r}; {', '.join(ENCODINGS)} can be read here")
        unpacker = zlib.decompressobj(bits)
        try:
            # One byte more than allowed shows that there are too many, however many there would be.
            found = unpacker.decompress(message.body, self._most_bytes + 1)
        except zlib.error as error:
            raise InvalidInput(f"a message that is not compressed by {self._encoding}: {error}") from None
        if len(found) > self._most_bytes:
            raise TooLarge(f"a message of more than {self._most_bytes} bytes, which are allowed here")
        if not unpacker.eof:
            raise InvalidInput(f"a message compressed by {self._encoding} ends too early")
        return found
