"""What is to be sent of what was read, given what the collection has: rows in batches, and which sources have gone.

Pure, but for the documents that it takes one by one. What is there already, whole and of the same hash, is passed over:
that is also how an import that broke off goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from nearmesh.errors import InvalidInput
from nearmesh.ingest.document import Content, Document, Problem, Unreadable
from nearmesh.ingest.files import File
from nearmesh.ingest.split import Part, Sizes, split
from nearmesh.v1 import vector_pb2 as pb
from nearmesh.vector_values import set_fields

MAX_ROW_ID_BYTES = 256
# Of one call: a node with a slow processor turns some texts a second into vectors, and people want to see it move.
MAX_TEXTS = 32
MAX_ROWS = 500
MAX_BYTES = 1024 * 1024
# A word now and then, also where nothing is to be sent.
DOCUMENTS_A_WORD = 500
# Of a filter, well below what a node reads.
MAX_FILTER_CHARACTERS = 3000
MAX_KEPT_PROBLEMS = 1000
# More sources than this, and more than half of what there was, are not deleted without a word: it may be another
# folder of the same name.
FEW_GONE = 10


@dataclass(slots=True)
class Tally:
    """How far an import is, and what came of it."""

    files: int = 0
    files_done: int = 0
    # Sources.
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    empty: int = 0
    deleted: int = 0
    # They have gone, and are so many that they were left.
    withheld: int = 0
    rows_written: int = 0
    rows_unchanged: int = 0
    rows_deleted: int = 0
    problem_count: int = 0
    # The first of them.
    problems: list[Problem] = field(default_factory=list)
    # Why the node is being waited for; empty while it answers.
    waiting: str = ""
    # Names of what could not be read, whole or in part: nothing of it has gone.
    kept: set[str] = field(default_factory=set)

    def refuse(self, problem: Problem) -> None:
        """Counts it."""
        self.kept.add(problem.source)
        self.problem_count += 1
        if len(self.problems) < MAX_KEPT_PROBLEMS:
            self.problems.append(problem)


@dataclass(frozen=True, slots=True)
class Finished:
    """A source all of whose rows are in this batch or in earlier ones."""

    source: str
    hash: str
    rows: int
    was_there: bool
    # Whether rows of older content are left, since the new ones have not taken the place of all.
    leaves: bool


@dataclass(slots=True)
class Batch:
    """What is sent with one call, and what is known when it has arrived."""

    rows: list[pb.Row] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    texts: int = 0
    bytes: int = 0

    @property
    def is_full(self) -> bool:
        return self.texts >= MAX_TEXTS or len(self.rows) >= MAX_ROWS or self.bytes >= MAX_BYTES

    def add(self, row: pb.Row) -> None:
        self.rows.append(row)
        self.texts += not row.vector
        self.bytes += row.ByteSize()


@dataclass(slots=True, kw_only=True)
class Planner:
    """Goes through what was read; `known` is what the collection has, and what is left in the end was not read.

    In a thread; of the tally it counts `files_done` and `unchanged` alone.
    """

    known: dict[str, pb.Source]
    sizes: Sizes
    tally: Tally
    # Whether the collection makes vectors of texts.
    embeds: bool = True
    _batch: Batch = field(default_factory=Batch, init=False)

    def batches(self, items: Iterable[Document | Problem | File]) -> Iterator[Batch]:
        """Full ones, and the last one; now and then one that only says how far it is. Raises InvalidInput."""
        quiet = 0
        for item in items:
            quiet += 1
            if isinstance(item, File):
                self.tally.files_done += 1
            elif isinstance(item, Problem):
                self._batch.problems.append(item)
            else:
                yield from self._document(item)
            if quiet >= DOCUMENTS_A_WORD:
                yield self._taken()
                quiet = 0
        yield self._taken()

    def _taken(self) -> Batch:
        found, self._batch = self._batch, Batch()
        return found

    def _document(self, document: Document) -> Iterator[Batch]:
        known = self.known.pop(document.source, None)
        if known and is_whole(known, document.hash):
            self.tally.unchanged += 1
            return
        try:
            content = document.read()
        except Unreadable as error:
            self._batch.problems.append(Problem(document.source, error.message))
            return
        parts = self._parts(content)
        for number, part in enumerate(parts):
            if self._batch.is_full:
                yield self._taken()
            self._batch.add(to_row(document, content, part, number, len(parts)))
        leaves = known is not None and (known.parts > len(parts) or known.stale_parts > 0)
        self._batch.finished.append(Finished(document.source, document.hash, len(parts), known is not None, leaves))
        if self._batch.is_full:
            yield self._taken()

    def _parts(self, content: Content) -> list[Part]:
        if content.vector:
            return [Part(content.text, 0, content.places(0, len(content.text)))]
        found = split(content, self.sizes)
        if found and not self.embeds:
            raise InvalidInput(
                "this collection has no embedder, so that every row brings its vector, and here is a text without one; "
                "create a collection with --embedder MODEL, or import records that have vectors (--vector COLUMN)"
            )
        return found


def is_whole(known: pb.Source, hash_: str) -> bool:
    return known.hash == hash_ and known.parts_here == known.parts and not known.stale_parts


def gone(known: Iterable[str], kept: Collection[str]) -> list[str]:
    """Of the sources that were not read, those that are neither kept nor below something that is."""
    return [name for name in known if not any(above in kept for above in _and_above(name))]


def too_many(gone_count: int, before: int) -> bool:
    """Whether so much has gone that it must be a mistake, or has to be said."""
    return gone_count > FEW_GONE and 2 * gone_count > before


def _and_above(name: str) -> Iterator[str]:
    yield name
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


# Rows and filters.


def row_id(source: str, number: int) -> str:
    """The source and the number of the part; of a long name its beginning and a digest."""
    found = f"{source}#{number}"
    if len(found.encode()) <= MAX_ROW_ID_BYTES:
        return found
    digest = hashlib.sha256(source.encode()).hexdigest()[:32]
    begin = source.encode()[: MAX_ROW_ID_BYTES - 48].decode(errors="ignore")
    return f"{begin}~{digest}#{number}"


def to_row(document: Document, content: Content, part: Part, number: int, parts: int) -> pb.Row:
    row = pb.Row(id=row_id(document.source, number), vector=content.vector, text=part.text)
    row.origin.source, row.origin.hash = document.source, document.hash
    row.origin.part, row.origin.parts, row.origin.position = number, parts, part.position
    set_fields(row, content.fields)
    return row


def older_than(finished: Finished) -> str:
    """Takes the source's rows of other content."""
    return f"source == {quoted(finished.source)} and source_hash != {quoted(finished.hash)}"


def all_of(sources: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Filters that take the rows of the sources, and of how many each."""
    names: list[str] = []
    length = 0
    for name in map(quoted, sources):
        if names and length + len(name) > MAX_FILTER_CHARACTERS:
            yield f"source in [{', '.join(names)}]", len(names)
            names, length = [], 0
        names.append(name)
        length += len(name) + 2
    if names:
        yield f"source in [{', '.join(names)}]", len(names)


def quoted(text: str) -> str:
    """As filters write strings. Names of sources have no control characters."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
