"""From files to documents, one after the other: chooses the reader, and counts what was read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nearmesh.errors import ConfigError
from nearmesh.ingest.document import Content, Document, Problem, Unreadable
from nearmesh.ingest.files import File, Kind
from nearmesh.ingest.json_lines import read_json_lines
from nearmesh.ingest.markdown import read_markdown
from nearmesh.ingest.pdf import read_pdf
from nearmesh.ingest.plain import read_plain
from nearmesh.ingest.reading import decode, read_bytes
from nearmesh.ingest.records import RecordRules, documents
from nearmesh.ingest.split import Sizes
from nearmesh.ingest.tables import read_table

# Counts up when a reader or the splitter makes other parts of the same file.
_EDITION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How files are read and cut."""

    sizes: Sizes = field(default_factory=Sizes)
    encoding: str = "utf-8"
    records: RecordRules = field(default_factory=RecordRules)

    def __post_init__(self) -> None:
        try:
            "x".encode(self.encoding)
        except (LookupError, UnicodeError):
            raise ConfigError(f"{self.encoding!r} is no encoding of texts; utf-8, latin-1 and cp1252 are") from None

    @property
    def recipe(self) -> str:
        """All that decides what a file becomes, beside its content."""
        return f"{_EDITION} {self.sizes.length} {self.sizes.overlap} {self.encoding}"


def read(files: Iterable[File], rules: Rules) -> Iterator[Document | Problem | File]:
    """What each file has, then the file itself. A file that cannot be read is a problem and no end."""
    for file in files:
        try:
            yield from _read(file, rules)
        except Unreadable as error:
            yield Problem(file.name, error.message)
        yield file


def _read(file: File, rules: Rules) -> Iterator[Document | Problem]:
    if file.kind is Kind.JSON_LINES:
        yield from documents(file.name, read_json_lines(file, rules.encoding), rules.records, rules.recipe)
    elif file.kind is Kind.CSV:
        yield from documents(file.name, read_table(file, rules.encoding), rules.records, rules.recipe)
    else:
        yield _whole(file, rules)


def _whole(file: File, rules: Rules) -> Document:
    """A file that is one document; it is only cut when it is asked for."""
    data = read_bytes(file.path)
    digest = hashlib.sha256(f"{rules.recipe} {file.kind}\0".encode() + data).hexdigest()[:32]

    def content() -> Content:
        if file.kind is Kind.PDF:
            return read_pdf(data)
        text = decode(data, rules.encoding)
        return read_markdown(text) if file.kind is Kind.MARKDOWN else read_plain(text)

    return Document(file.name, digest, content)
