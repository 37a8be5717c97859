"""Scalar fields of all rows, as arrays that filters are answered on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearmesh_agent.vectors.filters.tree import COMPARISONS
from nearmesh_agent.vectors.index.growing import Growing
from nearmesh_agent.vectors.model import Column, FieldType, Mask, Scalar

_DTYPES = {FieldType.INT: np.int64, FieldType.FLOAT: np.float64, FieldType.BOOL: np.bool_}
_ABSENT = -1


class Numbers:
    """Whole numbers, floats or truths."""

    def __init__(self, kind: FieldType) -> None:
        self._values = Growing(_DTYPES[kind])
        self._present = Growing(np.bool_)

    def encoded(self, values: Sequence[Scalar | None]) -> NDArray[Any]:
        """As `extend` takes them. Raises ValueError for one of another kind."""
        try:
            return np.array([0 if value is None else value for value in values], self._values.first(0).dtype)
        except (TypeError, OverflowError) as error:
            raise ValueError(error) from None

    def extend(self, encoded: NDArray[Any], values: Sequence[Scalar | None]) -> None:
        self._values.extend(encoded)
        self._present.extend(np.array([value is not None for value in values], np.bool_))

    def at(self, count: int) -> Column:
        """As filters ask the first `count` rows."""
        return _NumberColumn(self._values.first(count), self._present.first(count))

    def taken(self, slots: NDArray[np.int64]) -> Numbers:
        """Some of them, as a column of their own."""
        return self._with(self._values.first(len(self._values))[slots], self._present.first(len(self._present))[slots])

    def arrays(self, count: int) -> Mapping[str, NDArray[Any]]:
        """What it is saved as."""
        return {"values": self._values.first(count), "present": self._present.first(count)}

    def restored(self, arrays: Mapping[str, NDArray[Any]]) -> Numbers:
        return self._with(arrays["values"], arrays["present"])

    def _with(self, values: NDArray[Any], present: NDArray[Any]) -> Numbers:
        made = Numbers.__new__(Numbers)
        made._values, made._present = Growing(self._values.first(0).dtype, values), Growing(np.bool_, present)
        return made

    @property
    def nbytes(self) -> int:
        return self._values.nbytes + self._present.nbytes


class _NumberColumn:
    def __init__(self, values: NDArray[Any], present: Mask) -> None:
        self._values, self._present = values, present

    def compare(self, operator: str, value: Scalar) -> Mask:
        found: Mask = COMPARISONS[operator](self._values, value)
        return found & self._present

    def within(self, values: Collection[Scalar], *, negated: bool) -> Mask:
        wanted = np.array(list(values), self._values.dtype)
        return np.isin(self._values, wanted, invert=negated) & self._present

    def prefixed(self, prefix: str, *, negated: bool) -> Mask:
        raise TypeError("numbers do not begin with letters; the reader of filters lets none through")


class Strings:
    """Each different one once, and a number of it for each row."""

    def __init__(self) -> None:
        self._codes = Growing(np.int32)
        self._texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def encoded(self, values: Sequence[Scalar | None]) -> NDArray[Any]:
        """As `extend` takes them."""
        return np.fromiter((_ABSENT if value is None else self._code(str(value)) for value in values), np.int32)

    def extend(self, encoded: NDArray[Any], values: Sequence[Scalar | None]) -> None:
        self._codes.extend(encoded)

    def _code(self, text: str) -> int:
        number = self._numbers.get(text)
        if number is None:
            number = len(self._texts)
            self._texts.append(text)
            self._numbers[text] = number
        return number

    def at(self, count: int) -> Column:
        """As filters ask the first `count` rows."""
        return _StringColumn(self._codes.first(count), self._texts, self._numbers)

    def taken(self, slots: NDArray[np.int64]) -> Strings:
        """Some of them, as a column of their own that knows no other texts."""
        used, codes = np.unique(self._codes.first(len(self._codes))[slots], return_inverse=True)
        shift = 1 if len(used) and used[0] == _ABSENT else 0
        return self._with(codes.astype(np.int32) - shift, [self._texts[number] for number in used[shift:]])

    def arrays(self, count: int) -> Mapping[str, NDArray[Any]]:
        """What it is saved as."""
        codes = self._codes.first(count)
        known = int(codes.max()) + 1 if count else 0
        return {"codes": codes, **packed(self._texts[:known])}

    def restored(self, arrays: Mapping[str, NDArray[Any]]) -> Strings:
        return self._with(arrays["codes"], unpacked(arrays))

    def _with(self, codes: NDArray[Any], texts: list[str]) -> Strings:
        made = Strings()
        made._codes, made._texts = Growing(np.int32, codes), texts
        made._numbers = {text: number for number, text in enumerate(texts)}
        return made

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + sum(map(len, self._texts))


class _StringColumn:
    def __init__(self, codes: NDArray[np.int32], texts: list[str], numbers: Mapping[str, int]) -> None:
        self._codes, self._texts, self._numbers = codes, texts, numbers

    def compare(self, operator: str, value: Scalar) -> Mask:
        if operator == "==":
            return self.within((value,), negated=False)
        if operator == "!=":
            return self.within((value,), negated=True)
        test = COMPARISONS[operator]
        return self._where(lambda text: test(text, value))

    def within(self, values: Collection[Scalar], *, negated: bool) -> Mask:
        numbers = [number for value in values if (number := self._numbers.get(str(value))) is not None]
        if len(numbers) == 1 and not negated:
            only: Mask = self._codes == numbers[0]
            return only
        takes = np.full(len(self._texts) + 1, negated)
        takes[numbers] = not negated
        return self._looked_up(takes)

    def prefixed(self, prefix: str, *, negated: bool) -> Mask:
        return self._where(lambda text: text.startswith(prefix) != negated)

    def _where(self, test: Callable[[str], bool]) -> Mask:
        # One place more than texts, for rows that have none.
        known = len(self._texts)
        return self._looked_up(np.fromiter((*map(test, self._texts[:known]), False), np.bool_, known + 1))

    def _looked_up(self, takes: Mask) -> Mask:
        takes[_ABSENT] = False
        return takes[self._codes]


def column_for(kind: FieldType) -> Numbers | Strings:
    """An empty one."""
    return Strings() if kind is FieldType.STRING else Numbers(kind)


def packed(texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Strings as two arrays, without Python's objects."""
    encoded = [text.encode() for text in texts]
    return {
        "bytes": np.frombuffer(b"".join(encoded), np.uint8),
        "lengths": np.fromiter(map(len, encoded), np.int32, len(encoded)),
    }


def unpacked(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    data, ends = arrays["bytes"].tobytes(), np.cumsum(arrays["lengths"], dtype=np.int64).tolist()
    return [data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
