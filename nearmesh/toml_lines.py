"""On which line of a TOML text each key and each item stands.

tomllib tells lines of syntax errors alone, and so do the other parsers that are kept up. This one reads what tomllib
has accepted, so it checks nothing and keeps no values: it only has to know where keys, strings, lists and tables end.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from functools import cached_property

# The keys, and positions in lists, that lead to a value.
At = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
# Strings, the long ones first; a long one may end in up to five quotes, of which the last three close it.
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")'
    r"|'''.*?'{3,5}(?!')"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
# Numbers, dates and truth values; a date may have one blank before its time.
_PLAIN = re.compile(r"[^\s,\]}#]+(?: \d[^\s,\]}#]*)?")


class Lines:
    """Finds the line, from 1, of a place in a text that is right as TOML."""

    def __init__(self, text: str) -> None:
        self._text = text

    def find(self, at: At) -> int | None:
        """Of the innermost part of the place that is written in the text; None for the text as a whole."""
        for length in range(len(at), 0, -1):
            if (found := self._places.get(at[:length])) is not None:
                return bisect_right(self._starts, found)
        return None

    @cached_property
    def _starts(self) -> list[int]:
        return [0] + [match.end() for match in re.finditer("\n", self._text)]

    @cached_property
    def _places(self) -> dict[At, int]:
        return _Scanner(self._text).document()


class _Scanner:
    """Walks a text once; `_end` is how far it came."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._places: dict[At, int] = {}
        # By the keys of each [[list of tables]], how many there were.
        self._counts: dict[At, int] = {}

    def document(self) -> dict[At, int]:
        inside: At = ()
        while self._skip(_BLANK) and self._end < len(self._text):
            start = self._end
            if self._text[start] == "[":
                inside = self._header(start)
            else:
                self._pair(inside)
        return self._places

    def _header(self, start: int) -> At:
        many = self._text.startswith("[[", start)
        self._end = start + (2 if many else 1)
        self._skip(_BLANK)
        # A header goes into the last item of each list that it passes.
        at: At = ()
        keys = self._keys()
        for key in keys[:-1]:
            at = self._last((*at, key))
            self._note(at, start)
        at = (*at, keys[-1])
        if many:
            self._counts[at] = self._counts.get(at, 0) + 1
            self._note(at, start)
        at = self._last(at)
        self._note(at, start)
        self._end = self._text.index("]", self._end) + (2 if many else 1)
        return at

    def _last(self, at: At) -> At:
        return (*at, self._counts[at] - 1) if at in self._counts else at

    def _note(self, at: At, start: int) -> None:
        self._places.setdefault(at, start)

    def _pair(self, inside: At) -> None:
        start = self._end
        at = inside
        for key in self._keys():
            at = (*at, key)
            self._note(at, start)
        self._end = self._text.index("=", self._end) + 1
        self._value(at)

    def _keys(self) -> tuple[str, ...]:
        """A key and what follows it after dots."""
        keys = [self._key()]
        while dot := _DOT.match(self._text, self._end):
            self._end = dot.end()
            keys.append(self._key())
        return tuple(keys)

    def _key(self) -> str:
        if bare := _BARE.match(self._text, self._end):
            self._end = bare.end()
            return bare[0]
        quoted = _STRING.match(self._text, self._end)
        assert quoted is not None, "only texts that tomllib accepts are read"
        self._end = quoted.end()
        return _unquoted(quoted[0])

    def _value(self, at: At) -> None:
        self._skip(_BLANK)
        opening = self._text[self._end]
        if opening == "[":
            self._items(at)
        elif opening == "{":
            self._inline(at)
        else:
            self._skip(_STRING if opening in "\"'" else _PLAIN)

    def _items(self, at: At) -> None:
        self._end += 1
        position = 0
        while self._more("]"):
            self._note((*at, position), self._end)
            self._value((*at, position))
            position += 1

    def _inline(self, at: At) -> None:
        self._end += 1
        while self._more("}"):
            self._pair(at)

    def _more(self, closing: str) -> bool:
        """Goes to the next item of a list or table, or past its end."""
        self._skip(_BLANK)
        if self._text[self._end] == ",":
            self._end += 1
            self._skip(_BLANK)
        if self._text[self._end] != closing:
            return True
        self._end += 1
        return False

    def _skip(self, what: re.Pattern[str]) -> bool:
        match = what.match(self._text, self._end)
        assert match is not None, "only texts that tomllib accepts are read"
        self._end = match.end()
        return True


def _unquoted(key: str) -> str:
    (found,) = tomllib.loads(f"{key} = 0")
    return found
