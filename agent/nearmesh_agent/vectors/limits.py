"""How large what callers send may be, and checks that say what is wrong with the value. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nearmesh.errors import InvalidInput
from nearmesh_agent.vectors.model import FieldType, Metric, Row, Scalar, Table, Vector

# As Milvus has it.
MAX_DIMENSION = 32_768
# What a Milvus column of text takes is 65,535 bytes.
MAX_TEXT_BYTES = 60_000
MAX_STRING_BYTES = 8_192
MAX_ID_BYTES = 256
MAX_SOURCE_BYTES = 1_024
MAX_HASH_BYTES = 128
MAX_POSITION_BYTES = 512
# As many as a Milvus server's columns are enough for (`store.schema`).
MAX_FIELDS = 24
# One answer holds so many passages at most; more is what `Query` pages through.
MAX_K = 1_000
MAX_PAGE = 1_000
# Of one answer, about. A page ends there, too; who asks for so much at once is told to ask for less.
MAX_ANSWER_BYTES = 32 * 1024 * 1024
# Of one request; an importer sends a few hundred at a time.
MAX_ROWS = 10_000
MAX_IDS = 10_000
# Room for a list of some thousand ids.
MAX_FILTER_CHARACTERS = 256 * 1024
MAX_DESCRIPTION_CHARACTERS = 1_024
# Sites and regions of one collection.
MAX_PLACES = 64
# Names of embedders and of kinds of index, and digests.
MAX_SHORT_CHARACTERS = 256
# Each has an index, files and threads' time of its own.
MAX_COLLECTIONS = 1_000
# Of a vector's length. The square of the way between two of these is still a number of FP32.
_MAX_SQUARE = float(np.finfo(np.float32).max) / 4
# Below it the square of a length has lost its digits, and all directions look alike.
_MIN_SQUARE = float(np.finfo(np.float32).tiny / np.finfo(np.float32).eps)
# By whose rules words may lose their endings, as Tantivy's stemmers know them.
LANGUAGES = (
    *("arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian", "italian"),
    *("norwegian", "portuguese", "romanian", "russian", "spanish", "swedish", "tamil", "turkish"),
    "none",
)
INT64 = range(-(2**63), 2**63)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
# What every row has, and words of the filters' language.
RESERVED = frozenset(
    {"id", "vector", "text", "source", "source_hash", "part", "and", "or", "not", "in", "like", "true", "false"}
)
_QUOTED = 64


def check_name(name: str) -> str:
    """Returns what can name a collection. Raises InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"collection {name[:_QUOTED]!r} must be 1 to 63 of letters, digits and . _ -, beginning with none of these"
        )
    return name


def check_fields(fields: Sequence[tuple[str, FieldType]]) -> dict[str, FieldType]:
    """Raises InvalidInput for a name twice, one that cannot be used, or too many."""
    if len(fields) > MAX_FIELDS:
        raise InvalidInput(f"{len(fields)} fields; a collection has at most {MAX_FIELDS}")
    found: dict[str, FieldType] = {}
    for name, kind in fields:
        if not _FIELD.fullmatch(name):
            raise InvalidInput(f"field {name[:_QUOTED]!r} must be 1 to 63 of letters, digits and _, a letter first")
        if name.lower() in RESERVED:
            raise InvalidInput(f"field {name!r} is a word that filters have already; name it otherwise")
        if name in found:
            raise InvalidInput(f"field {name!r} is there twice")
        found[name] = kind
    return found


def check_description(text: str) -> str:
    if len(text) > MAX_DESCRIPTION_CHARACTERS:
        raise InvalidInput(f"a description of {len(text)} characters; it may have {MAX_DESCRIPTION_CHARACTERS}")
    return text


def check_short(what: str, text: str) -> str:
    if len(text) > MAX_SHORT_CHARACTERS:
        raise InvalidInput(
            f"{what} {text[:_QUOTED]!r}... has {len(text)} characters; it may have {MAX_SHORT_CHARACTERS}"
        )
    return text


def check_language(language: str) -> str:
    """English where nothing was said. Raises InvalidInput."""
    if language and language not in LANGUAGES:
        raise InvalidInput(f"language {language[:_QUOTED]!r} is none of {', '.join(LANGUAGES)}")
    return language or "english"


def check_dimension(dimension: int) -> int:
    if not 1 <= dimension <= MAX_DIMENSION:
        raise InvalidInput(f"dimension {dimension} is not 1 to {MAX_DIMENSION}")
    return dimension


def check_k(k: int) -> int:
    """How many are asked for, 10 where nothing was said. Raises InvalidInput."""
    if k > MAX_K:
        raise InvalidInput(f"k is {k}; one answer holds at most {MAX_K}, and Query pages through more")
    return k or 10


def check_page(size: int) -> int:
    if size > MAX_PAGE:
        raise InvalidInput(f"page_size is {size}; a page has at most {MAX_PAGE} rows")
    return size or 100


def check_count(what: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidInput(f"{count} {what} in one request; send at most {most} at a time")


def check_vector(data: bytes, table: Table, of: str = "the query's vector") -> Vector:
    """FP32 from bytes. Raises InvalidInput for a wrong dimension, NaN, infinity, or what scores cannot be made of."""
    dimension = table.dimension
    if len(data) != 4 * dimension:
        size = f"{len(data) // 4} numbers" if len(data) % 4 == 0 else f"{len(data)} bytes"
        raise InvalidInput(f"{of} has {size}; the collection's dimension is {dimension}, {4 * dimension} bytes of FP32")
    vector = np.frombuffer(data, "<f4")
    if not np.isfinite(vector).all():
        at = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise InvalidInput(f"{of} has {vector[at]} at {at}; every number must be finite")
    with np.errstate(over="ignore", under="ignore"):
        square = float(np.dot(vector, vector))
    if square > _MAX_SQUARE:
        raise InvalidInput(f"{of} is longer than {_MAX_SQUARE**0.5:.0e}; FP32 cannot hold its scores, so scale it")
    if table.metric is Metric.COSINE and square < _MIN_SQUARE:
        if not vector.any():
            raise InvalidInput(f"{of} is all zeros, which have no direction; cosine cannot compare them")
        raise InvalidInput(f"{of} is shorter than {_MIN_SQUARE**0.5:.0e}; FP32 cannot hold its direction, so scale it")
    return vector


def check_row(row: Row, fields: Mapping[str, FieldType]) -> None:
    """All of it but the vector. Raises InvalidInput."""
    check_id(row.id)
    origin = row.origin
    for what, text, most in (
        ("text", row.text, MAX_TEXT_BYTES),
        ("source", origin.source, MAX_SOURCE_BYTES),
        ("hash", origin.hash, MAX_HASH_BYTES),
        ("position", origin.position, MAX_POSITION_BYTES),
    ):
        _check_bytes(f"row {row.id!r}: its {what}", text, most)
    for name, value in row.fields.items():
        _check_field(row.id, name, value, fields)


def check_id(name: str) -> None:
    size = _size(name)
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidInput(f"id {name[:_QUOTED]!r} has {size} bytes of UTF-8; an id has 1 to {MAX_ID_BYTES}")
    if "\0" in name:
        raise InvalidInput(f"id {name[:_QUOTED]!r} has a zero byte")


def check_ids(ids: Iterable[str]) -> None:
    for name in ids:
        check_id(name)


def _check_field(row: str, name: str, value: Scalar, fields: Mapping[str, FieldType]) -> None:
    kind = fields.get(name)
    if kind is None:
        known = ", ".join(fields) or "none"
        raise InvalidInput(f"row {row!r}: the collection has no field {name[:_QUOTED]!r}; its fields are {known}")
    if not _is(kind, value):
        raise InvalidInput(f"row {row!r}: field {name!r} is {kind.value}, got {_shown(value)}")
    if isinstance(value, str):
        _check_bytes(f"row {row!r}: field {name!r}", value, MAX_STRING_BYTES)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput(f"row {row!r}: field {name!r} is {value}; a number must be finite")


def _is(kind: FieldType, value: Scalar) -> bool:
    # bool first: it is an int as well.
    if isinstance(value, bool):
        return kind is FieldType.BOOL
    if isinstance(value, int):
        return kind is FieldType.INT and value in INT64
    if isinstance(value, float):
        return kind is FieldType.FLOAT
    return kind is FieldType.STRING


def _shown(value: Scalar) -> str:
    return repr(value[:_QUOTED] if isinstance(value, str) else value)


def _check_bytes(what: str, text: str, most: int) -> None:
    if len(text) > most // 4 and _size(text) > most:
        raise InvalidInput(f"{what} has {_size(text)} bytes of UTF-8; at most {most} are kept, so split it")
    if "\0" in text:
        raise InvalidInput(f"{what} has a zero byte, which no store takes")


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
