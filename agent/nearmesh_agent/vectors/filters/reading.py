"""Reads a filter, checks it against a collection's fields, and bounds it: it comes from whoever holds a token.

any   = all {"or" all}                       also "||"
all   = one {"and" one}                      also "&&"
one   = "not" one | "(" any ")" | test       also "!"
test  = field (== | != | < | <= | > | >=) value
      | value (the same) field
      | field ["not"] "in" "[" value {"," value} "]"
      | field ["not"] "like" "beginning%"
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from nearmesh_agent.vectors.filters.tree import COMPARISONS, STANDING, AllOf, AnyOf, Compare, Filter, Prefixed, Within
from nearmesh_agent.vectors.filters.words import Kind, Word, split, wrong
from nearmesh_agent.vectors.limits import MAX_FILTER_CHARACTERS
from nearmesh_agent.vectors.model import FieldType, Scalar

# Of brackets and "not" in one another.
MAX_DEPTH = 32
# Each is a pass over the table's columns.
MAX_TERMS = 256
# In one list.
MAX_VALUES = 10_000

_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_TAKES = {
    FieldType.STRING: "a string",
    FieldType.INT: "a whole number",
    FieldType.FLOAT: "a number",
    FieldType.BOOL: "true or false",
}


def read(text: str, fields: Mapping[str, FieldType]) -> Filter | None:
    """None where the text is blank: everything. Raises InvalidInput that says what is wrong, and where."""
    if len(text) > MAX_FILTER_CHARACTERS:
        raise wrong(MAX_FILTER_CHARACTERS + 1, f"it has {len(text)} characters; {MAX_FILTER_CHARACTERS} is the limit")
    if not text.strip(" \t\r\n"):
        return None
    return _Reader(split(text), {**STANDING, **fields}).whole()


class _Reader:
    """One pass over the words of one filter."""

    def __init__(self, words: list[Word], fields: Mapping[str, FieldType]) -> None:
        self._words = words
        self._at = 0
        self._fields = fields
        self._terms = 0

    def whole(self) -> Filter:
        found = self._any(0)
        if self._now.kind is not Kind.END:
            raise self._unexpected('"and", "or" or its end')
        return found

    @property
    def _now(self) -> Word:
        return self._words[self._at]

    def _next(self) -> Word:
        word = self._words[self._at]
        self._at = min(self._at + 1, len(self._words) - 1)
        return word

    def _passes(self, sign: str) -> bool:
        """Whether the sign comes now; it is passed then."""
        if self._now.kind is Kind.SIGN and self._now.text == sign:
            self._next()
            return True
        return False

    def _expect(self, sign: str) -> None:
        if not self._passes(sign):
            raise self._unexpected(f'"{sign}"')

    def _unexpected(self, expected: str) -> Exception:
        return wrong(self._now.at, f"expected {expected}, found {self._now.text[:40]}")

    def _any(self, depth: int) -> Filter:
        parts = [self._all(depth)]
        while self._passes("or"):
            parts.append(self._all(depth))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _all(self, depth: int) -> Filter:
        parts = [self._one(depth)]
        while self._passes("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _one(self, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise wrong(self._now.at, f'brackets and "not" are nested more than {MAX_DEPTH} deep')
        if self._passes("not"):
            return self._one(depth + 1).opposite()
        if self._passes("("):
            found = self._any(depth + 1)
            self._expect(")")
            return found
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise wrong(self._now.at, f"it has more than {MAX_TERMS} comparisons; a list with in [...] is one")
        return self._value_first() if self._now.kind is Kind.VALUE else self._field_first()

    def _value_first(self) -> Filter:
        word = self._next()
        operator = self._comparison()
        return self._compared(self._field(), _TURNED.get(operator, operator), word)

    def _field_first(self) -> Filter:
        name = self._field()
        negated = self._passes("not")
        if self._passes("in"):
            return Within(name, self._values(name), negated)
        if self._passes("like"):
            return Prefixed(name, self._beginning(name), negated)
        if negated:
            raise self._unexpected('"in" or "like"')
        return self._compared(name, self._comparison(), self._next())

    def _compared(self, name: str, operator: str, word: Word) -> Filter:
        value = self._fit(name, word)
        if self._fields[name] is FieldType.BOOL and operator not in ("==", "!="):
            raise wrong(word.at, f'field "{name}" is true or false; it is compared with == and != only')
        return Compare(name, operator, value)

    def _comparison(self) -> str:
        if self._now.kind is not Kind.SIGN or self._now.text not in COMPARISONS:
            raise self._unexpected("one of == != < <= > >= in like")
        return self._next().text

    def _field(self) -> str:
        word = self._now
        if word.kind is not Kind.NAME:
            raise self._unexpected("a field")
        if word.text not in self._fields:
            near = difflib.get_close_matches(word.text[:64], self._fields, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else f"; there are: {', '.join(self._fields)}"
            raise wrong(word.at, f'the collection has no field "{word.text[:64]}"{hint}')
        return self._next().text

    def _values(self, name: str) -> frozenset[Scalar]:
        self._expect("[")
        if self._now.text == "]":
            raise wrong(self._now.at, "the list is empty; it would take no row, or every row")
        found = [self._fit(name, self._next())]
        while self._passes(","):
            if len(found) == MAX_VALUES:
                raise wrong(self._now.at, f"the list has more than {MAX_VALUES} values")
            found.append(self._fit(name, self._next()))
        self._expect("]")
        return frozenset(found)

    def _beginning(self, name: str) -> str:
        word = self._next()
        value = self._fit(name, word)
        if not isinstance(value, str):
            raise wrong(word.at, f'"like" asks about strings; field "{name}" takes {_TAKES[self._fields[name]]}')
        if not value.endswith("%") or "%" in value[:-1]:
            raise wrong(word.at, 'after "like" stands how the string begins and one "%" at the end: "handbook/%"')
        return value[:-1]

    def _fit(self, name: str, word: Word) -> Scalar:
        """The word's value as the field has it."""
        value, kind = word.value, self._fields[name]
        if word.kind is Kind.VALUE:
            match kind, value:
                case (FieldType.BOOL, bool()) | (FieldType.STRING, str()):
                    return value
                case (FieldType.INT, int()) if not isinstance(value, bool):
                    return value
                case (FieldType.FLOAT, int() | float()) if not isinstance(value, bool):
                    return float(value)
        raise wrong(word.at, f'field "{name}" takes {_TAKES[kind]}, found {word.text[:40]}')
