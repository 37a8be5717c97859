"""A filter's text as words: names, values and signs, each with its place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from nearmesh.errors import InvalidInput
from nearmesh_agent.vectors.model import Scalar

_WORD = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"|(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.]))"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>==|!=|<=|>=|&&|\|\||[<>!()\[\],])",
    re.DOTALL,
)
_SPACE = re.compile(r"[ \t\r\n]*")
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "n": "\n", "r": "\r", "t": "\t"}
_KEYWORDS = {"and", "or", "not", "in", "like"}
_SAME = {"&&": "and", "||": "or", "!": "not"}
_TRUTHS = {"true": True, "false": False}
_LARGEST_INT = 2**63 - 1
# Whoever reads the message has the whole filter.
_SHOWN_CHARACTERS = 24


class Kind(Enum):
    NAME = auto()
    VALUE = auto()
    # A keyword, an operator or a bracket.
    SIGN = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Word:
    kind: Kind
    text: str
    # From 1, as people count characters.
    at: int
    value: Scalar = ""


def split(text: str) -> list[Word]:
    """The words of a filter, and one that ends it. Raises InvalidInput that names the place."""
    words: list[Word] = []
    at = _skipped(text, 0)
    while at < len(text):
        found = _WORD.match(text, at)
        if found is None:
            raise wrong(at + 1, _strange(text, at))
        words.append(_word(found))
        at = _skipped(text, found.end())
    words.append(Word(Kind.END, "its end", len(text) + 1))
    return words


def wrong(at: int, what: str) -> InvalidInput:
    """What all errors of a filter look like."""
    return InvalidInput(f"filter, character {at}: {what}")


def _skipped(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _word(found: re.Match[str]) -> Word:
    text, at = found[0], found.start() + 1
    match found.lastgroup:
        case "string":
            return Word(Kind.VALUE, text, at, _string(text, at))
        case "number":
            return Word(Kind.VALUE, text, at, _number(text, at))
        case "sign":
            return Word(Kind.SIGN, _SAME.get(text, text), at)
    lowered = text.lower()
    if lowered in _KEYWORDS:
        return Word(Kind.SIGN, lowered, at)
    if lowered in _TRUTHS:
        return Word(Kind.VALUE, text, at, _TRUTHS[lowered])
    return Word(Kind.NAME, text, at)


def _string(text: str, at: int) -> str:
    parts: list[str] = []
    inner = iter(text[1:-1])
    for character in inner:
        if character == "\\":
            escaped = next(inner)
            if escaped not in _ESCAPES:
                raise wrong(at, f"a string has the escape \\{escaped}; there are only {_known_escapes()}")
            character = _ESCAPES[escaped]
        parts.append(character)
    return "".join(parts)


def _known_escapes() -> str:
    return " ".join("\\" + name for name in _ESCAPES)


def _number(text: str, at: int) -> int | float:
    if text.lstrip("+-").isdigit():
        # Python refuses to read numbers of thousands of digits, in words that help nobody.
        if len(text) > 20 or abs(int(text)) > _LARGEST_INT:
            raise wrong(at, f"{_short(text)} is no number of 64 bits")
        return int(text)
    value = float(text)
    if abs(value) == float("inf"):
        raise wrong(at, f"{_short(text)} is above what a float holds")
    return value


def _strange(text: str, at: int) -> str:
    character = text[at]
    if character in "\"'":
        return f"a string that begins with {character} does not end"
    if character == "=":
        return 'a single "="; equality is written "=="'
    if character.isdigit() or character in "+-.":
        return f"{_short(text[at:])!r} is no number"
    return f"{character!r} has no meaning here; strings stand in quotes"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
