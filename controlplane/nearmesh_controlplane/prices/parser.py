"""A price feed's bytes into a table: CSV with a header, or JSON. Pure.

A row prices a machine or the way between two regions. A machine is a `node`, or every node of a `region` and a
`machine_type`; its price stands in `usd_per_hour` and `usd_per_hour_spot`, or in `amount`, `amount_spot` and
`currency`; `valid_until` may bound it. A way has `from_region`, `to_region` and `usd_per_gb`. Other columns are passed
over, unless one looks like a misspelt one of these. JSON is a list of such rows, or
`{"prices": [...], "transfers": [...]}`.

A feed is taken as a whole or not at all: half of a price list is worse than yesterday's.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from nearmesh.errors import InvalidInput
from nearmesh_controlplane.prices.currencies import USD, Currencies, Money, check_amount
from nearmesh_controlplane.prices.rules import MAX_TIME_S
from nearmesh_controlplane.prices.table import FeedPrice, Pair, PriceTable

# All of one large cloud's prices, every machine type in every region, are 13,000 rows and 1 MB.
MAX_BYTES = 8 * 1024 * 1024
MAX_ROWS = 100_000
# Of a node, a region or a machine type.
MAX_NAME = 128

MACHINE = ("node", "region", "machine_type")
PRICE = ("usd_per_hour", "usd_per_hour_spot", "amount", "amount_spot")
TRANSFER = ("from_region", "to_region", "usd_per_gb")
COLUMNS = (*MACHINE, *PRICE, "currency", "valid_until", *TRANSFER)
EXPECTED = (
    "expected node, or region and machine_type, with usd_per_hour, usd_per_hour_spot, or amount and currency; "
    f"or {', '.join(TRANSFER)}"
)

# What float() takes beside these (nan, 1_000, digits of other scripts) is no price.
_NUMBER = re.compile(r"\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", flags=re.ASCII)
# What spreadsheets write in some countries.
_OTHER_SEPARATOR = re.compile(r"[;\t|]")
# As a rule the names of columns that were meant are at least so alike.
_ALIKE = 0.8
# Of one row. Names are compared with those that are known, which is slow, so there are bounds.
MAX_COLUMNS = 1000
# Rows of JSON name their columns each for itself; made by one program, they do it in a few ways.
MAX_SHAPES = 100

# A place for people ("line 7"), and what stands there by column.
Row = tuple[str, dict[str, str]]


class BadFeed(InvalidInput):
    """What a feed says cannot be taken over."""


def parse(data: bytes, currencies: Currencies) -> PriceTable:
    """Raises BadFeed that names the line and the value."""
    if len(data) > MAX_BYTES:
        raise BadFeed(f"it has more than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFeed(f"it is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from None
    found = _Builder(currencies)
    for number, (where, row) in enumerate(_rows(text), 1):
        if number > MAX_ROWS:
            raise BadFeed(f"{where}: it has more than {MAX_ROWS} rows")
        try:
            found.add(where, row)
        except InvalidInput as error:
            raise BadFeed(f"{where}: {error.message}") from None
    table = PriceTable(found.by_node, found.by_type, found.transfers)
    if not len(table):
        raise BadFeed("it has no prices")
    return table


def _rows(text: str) -> Iterator[Row]:
    start = text.lstrip()[:1]
    if not start:
        raise BadFeed("it is empty")
    return _json_rows(text) if start in "[{" else _csv_rows(text)


# CSV


def _csv_rows(text: str) -> Iterator[Row]:
    if not text.endswith(("\n", "\r")):
        raise BadFeed("its last line has no end: it may have been cut off while it was written")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    for line, cells in _csv_lines(reader):
        if not any(cells):
            continue
        if not header:
            header = [name.strip() for name in cells]
            _check_header(header, f"line {line}")
        elif len(cells) != len(header):
            raise BadFeed(f"line {line}: {len(cells)} cells, and the header has {len(header)}")
        else:
            yield f"line {line}", {name: cell.strip() for name, cell in zip(header, cells, strict=True)}


def _csv_lines(reader: Any) -> Iterator[tuple[int, list[str]]]:
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadFeed(f"line {reader.line_num}: {error}") from None
        if cells is None:
            return
        yield reader.line_num, cells


def _check_header(names: list[str], where: str) -> None:
    if len(names) == 1 and (other := _OTHER_SEPARATOR.search(names[0])):
        raise BadFeed(f"{where}: its columns are separated by {other[0]!r}; expected commas")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadFeed(f"{where}: there are two columns {_shown(twice)}")
    _check_columns(names, where)
    machine = "node" in names or {"region", "machine_type"} <= set(names)
    if not (machine and set(PRICE) & set(names)) and not set(TRANSFER) <= set(names):
        raise BadFeed(f"{where}: columns {_shown(', '.join(names))}; {EXPECTED}")


def _check_columns(names: Iterable[str], where: str) -> None:
    """Passes over what it does not know, unless that stands where a column that it does know is missing."""
    given = set(names)
    if len(given) > MAX_COLUMNS:
        raise BadFeed(f"{where}: {len(given)} columns; at most {MAX_COLUMNS}")
    for name in given.difference(COLUMNS):
        if len(name) > MAX_NAME:
            continue
        meant = difflib.get_close_matches(name, [known for known in COLUMNS if known not in given], 1, _ALIKE)
        if meant:
            raise BadFeed(f"{where}: unknown column {_shown(name)}; did you mean {meant[0]!r}?")


# JSON


def _json_rows(text: str) -> Iterator[Row]:
    try:
        found = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise BadFeed("it is not JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise BadFeed(f"it is not JSON: {error}") from None
    parts = {"": found} if isinstance(found, list) else found
    if unknown := parts.keys() - {"", "prices", "transfers"}:
        raise BadFeed(f"unknown key {_shown(min(unknown))}; expected a list, or 'prices' and 'transfers'")
    known: set[tuple[str, ...]] = set()
    for key, rows in parts.items():
        if not isinstance(rows, list):
            raise BadFeed(f"{key} is not a list")
        for number, row in enumerate(rows, 1):
            where = f"{key} row {number}".strip()
            yield where, _json_row(row, where, known)


def _json_row(row: object, where: str, known: set[tuple[str, ...]]) -> dict[str, str]:
    """`known` are the sets of columns that were found good: rows are many, and mostly alike."""
    if not isinstance(row, dict):
        raise BadFeed(f"{where}: {_shown(row)} is not an object")
    if (names := tuple(row)) not in known:
        _check_columns(names, where)
        known.add(names)
        if len(known) > MAX_SHAPES:
            raise BadFeed(f"{where}: its rows have more than {MAX_SHAPES} different sets of keys")
    return {name: _json_cell(value, f"{where}: {name}") for name, value in row.items() if name in COLUMNS}


def _json_cell(value: object, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadFeed(f"{where} is {_shown(value)}; expected a number or a text")
    return str(value).strip()


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no price")


# One row


class _Builder:
    """Collects rows; each method raises InvalidInput."""

    def __init__(self, currencies: Currencies) -> None:
        self._currencies = currencies
        self.by_node: dict[str, FeedPrice] = {}
        self.by_type: dict[Pair, FeedPrice] = {}
        self.transfers: dict[Pair, float] = {}
        # Where each was first found.
        self._places: dict[tuple[str, ...], str] = {}

    def add(self, where: str, row: dict[str, str]) -> None:
        if any(row.get(column) for column in TRANSFER):
            pair = (_name(row, "from_region"), _name(row, "to_region"))
            self._once(where, ("transfer", *pair))
            self.transfers[pair] = check_amount(_number(row, "usd_per_gb"))
        elif row.get("node"):
            self._price(where, row, self.by_node, _name(row, "node"), "node", row["node"])
        else:
            kind = (_name(row, "region"), _name(row, "machine_type"))
            self._price(where, row, self.by_type, kind, "region", kind[0], "machine_type", kind[1])

    def _price(self, where: str, row: dict[str, str], found: dict[Any, FeedPrice], key: Any, *place: str) -> None:
        self._once(where, place)
        price = FeedPrice(self._money(row, ""), self._money(row, "_spot"), _until(row.get("valid_until", "")))
        # Price lists name machines that are not sold on one of the terms, or on none.
        if price.on_demand or price.spot:
            found[key] = price

    def _once(self, where: str, key: tuple[str, ...]) -> None:
        first = self._places.setdefault(key, where)
        if first != where:
            raise InvalidInput(f"{_shown(' '.join(key))} is priced twice, first at {first}")

    def _money(self, row: dict[str, str], terms: str) -> Money | None:
        currency = row.get("currency") or USD
        dollars, amount = f"usd_per_hour{terms}", f"amount{terms}"
        if row.get(dollars):
            if row.get(amount) or currency != USD:
                raise InvalidInput(f"it has {dollars} and {amount} or a currency; give one price, as either")
            return self._currencies.money(_number(row, dollars), USD)
        return self._currencies.money(_number(row, amount), currency) if row.get(amount) else None


def _name(row: dict[str, str], column: str) -> str:
    value = row.get(column, "")
    if not value:
        raise InvalidInput(f"{column} is empty; {EXPECTED}")
    if len(value) > MAX_NAME:
        raise InvalidInput(f"{column} {_shown(value)} has more than {MAX_NAME} characters")
    return value


def _number(row: dict[str, str], column: str) -> float:
    value = row.get(column, "")
    if not _NUMBER.fullmatch(value):
        raise InvalidInput(f"{column} is {_shown(value)}; expected a number of 0 or more")
    return float(value)


def _until(value: str) -> float:
    """ISO 8601, UTC where it says nothing else, or seconds since the epoch; 0 when empty."""
    if not value:
        return 0.0
    try:
        at_s = float(value) if _NUMBER.fullmatch(value) else _date(value).timestamp()
    except (ValueError, OverflowError):
        at_s = -1.0
    if not 0 < at_s <= MAX_TIME_S:
        raise InvalidInput(f"valid_until is {_shown(value)}; expected such as 2026-03-01T12:00:00Z")
    return at_s


def _date(value: str) -> datetime:
    found = datetime.fromisoformat(value)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _shown(value: object) -> str:
    """Short enough for a line, whatever a feed says."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
