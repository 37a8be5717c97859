"""The words of one table's texts: Tantivy's index on disk, and beside it what was written since its last commit.

A commit takes tens of milliseconds, so writes do not wait for one: their rows lie in memory and are scored here by the
same formula, until `maintain` takes them over. What a commit knows up to is written to a file of its own after it, so
that a crash between the two has some writes applied again, which changes nothing.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearmesh.errors import EngineFailure, InvalidInput
from nearmesh.tls import fsync_folder, write_private
from nearmesh_agent.vectors.model import Found, Write
from nearmesh_agent.vectors.text import words

log = logging.getLogger(__name__)

# Rows that are scored here, a microsecond or two each; with more, a search has them committed first.
MOST_FRESH = 512
# Tantivy's least for its one thread; a commit empties it.
_HEAP_BYTES = 15_000_000
# As Tantivy has them: how soon more of one word says no more, and how much a long text is held against it.
_K1, _B = 1.2, 0.75
# Of the analysis and the layout; an index of another is made anew.
_VERSION = 1
_STATE, _INDEX = "position.json", "words"


@dataclass(slots=True)
class _Fresh:
    """A row that is not in the index yet; without words it was deleted, or has no text."""

    text: str = ""
    language: str = words.ENGLISH
    _words: Counter[str] | None = field(default=None)

    @property
    def words(self) -> Counter[str]:
        # Counted when a search needs it: most rows are committed before one does.
        if self._words is None:
            self._words = words.words(self.text, self.language)
        return self._words

    @property
    def length(self) -> int:
        """In characters, as the index has it: against the mean it says the same as words would, and costs nothing."""
        return len(self.text)


class TantivyLexical:
    """`model.Lexical`. One writer; threads search beside it."""

    def __init__(self, folder: Path, language: str, position: int) -> None:
        """`new` and `load` are the ways to get one."""
        self._folder, self._language = folder, language
        self._index, self._committed = _index(folder / _INDEX, language), position
        self._searcher = self._index.searcher()
        self._length = _mean_length(self._searcher)
        # By id, the newest write that is not committed. Changed with the lock held.
        self._fresh: dict[str, _Fresh] = {}
        self._position = self._committed
        self._lock = threading.Lock()
        self._committing = threading.Lock()
        self._writer: Any = None
        self._closed = False

    @classmethod
    def new(cls, folder: Path, language: str = words.ENGLISH) -> TantivyLexical:
        """Empty, in the place of one that was there; `language` is one of `limits.LANGUAGES`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _STATE).unlink(missing_ok=True)
        # Else a power cut might bring back what says how much an index holds that is gone.
        fsync_folder(folder)
        shutil.rmtree(folder / _INDEX, ignore_errors=True)
        return cls(folder, language, 0)

    @classmethod
    def load(cls, folder: Path, language: str = words.ENGLISH) -> TantivyLexical | None:
        """As it was saved; None where there is none, or one that is damaged or of another analysis."""
        try:
            state = json.loads((folder / _STATE).read_bytes())
            if (state["version"], state.get("language", words.ENGLISH)) == (_VERSION, language):
                return cls(folder, language, int(state["position"]))
            log.info("words were indexed by another analysis folder=%s", folder.name)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the index of words cannot be read folder=%s: %s", folder.name, error)
        return None

    def apply(self, write: Write, position: int) -> None:
        """Searches find its rows, and what it deleted no more, when it returns. The same again changes nothing."""
        with self._lock:
            for row in write.rows:
                self._fresh[row.id] = _Fresh(row.text, self._language)
            for id in write.deleted:
                self._fresh[id] = _Fresh()
            self._position = max(self._position, position)

    def search(self, text: str, k: int, among: Collection[str] | None = None) -> Sequence[Found]:
        """By BM25, best first; `among` are the ids that may be found. Raises InvalidInput for k below 1."""
        if k < 1:
            raise InvalidInput(f"k is {k}, expected 1 or more")
        terms = words.query_words(text, self._language)
        if not terms:
            return []
        searcher, length, fresh = self._now()
        found = _in_index(searcher, self._index.schema, terms, k + len(fresh), among)
        kept = [each for each in found if each.id not in fresh]
        kept += _in_fresh(searcher, length, fresh, terms, among)
        return sorted(kept, key=lambda each: (-each.score, each.id))[:k]

    def maintain(self) -> None:
        """Takes fresh rows into the index, on disk; in a thread. Without any it gives back the writer's memory.

        Raises EngineFailure, OSError, with nothing lost.
        """
        with self._committing:
            if self._closed:
                return
            with self._lock:
                fresh, position = dict(self._fresh), self._position
            if position == self._committed and not fresh:
                self._end_writer()
                return
            try:
                searcher = self._commit(fresh)
            except ValueError as error:
                # As Tantivy says of a disk that is full or fails. What it has not committed is here still.
                self._writer = None
                raise EngineFailure(f"words in {self._folder} cannot be written: {error}") from None
            with self._lock:
                self._searcher, self._length = searcher, _mean_length(searcher)
                self._fresh = {id: row for id, row in self._fresh.items() if fresh.get(id) is not row}
            self._tell(position)

    def save(self) -> int:
        """The same; the position up to which the disk knows."""
        self.maintain()
        return self._committed

    @property
    def position(self) -> int:
        return self._position

    @property
    def size(self) -> int:
        """Rows with a text, those about to be deleted included."""
        return int(self._searcher.num_docs)

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(path.stat().st_size for path in (self._folder / _INDEX).iterdir() if path.is_file())

    def close(self) -> None:
        """What is fresh is in the journal. Safe to repeat."""
        with self._committing:
            self._closed = True
            self._end_writer()

    def _now(self) -> tuple[Any, float, dict[str, _Fresh]]:
        """What to search: a commit, and what is newer than it."""
        if len(self._fresh) > MOST_FRESH:
            try:
                self.maintain()
            except (EngineFailure, OSError) as error:
                # A disk that is full makes searches slower, and does not end them.
                log.warning("searched from memory: %s", error)
        with self._lock:
            return self._searcher, self._length, dict(self._fresh)

    def _commit(self, fresh: dict[str, _Fresh]) -> Any:
        import tantivy

        if self._writer is None:
            self._writer = self._index.writer(_HEAP_BYTES, 1)
        for id, row in fresh.items():
            self._writer.delete_documents_by_term("id", id)
            if row.text:
                document = tantivy.Document()
                document.add_text("id", id)
                document.add_text("words", words.spaced(row.text))
                document.add_unsigned("length", row.length)
                self._writer.add_document(document)
        self._writer.commit()
        self._index.reload()
        return self._index.searcher()

    def _tell(self, position: int) -> None:
        """After the commit: behind it, the same writes would be applied again; before it, they would be lost."""
        state = {"version": _VERSION, "language": self._language, "position": position}
        write_private(self._folder / _STATE, json.dumps(state).encode())
        self._committed = position

    def _end_writer(self) -> None:
        if self._writer is not None:
            self._writer.wait_merging_threads()
            self._writer = None


def _index(folder: Path, language: str) -> Any:
    """Raises ValueError where what lies there is damaged."""
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("words", tokenizer_name="nearmesh", index_option="freq")
    builder.add_unsigned_field("length", fast=True)
    folder.mkdir(exist_ok=True)
    index = tantivy.Index(builder.build(), path=str(folder))
    index.register_tokenizer("nearmesh", words.analyzer(language))
    return index


def _mean_length(searcher: Any) -> float:
    import tantivy

    if not searcher.num_docs:
        return 0.0
    found = searcher.aggregate(tantivy.Query.all_query(), {"mean": {"avg": {"field": "length"}}})
    return float(found["mean"]["value"] or 0.0)


def _in_index(
    searcher: Any, schema: Any, terms: Sequence[str], limit: int, among: Collection[str] | None
) -> list[Found]:
    from tantivy import Occur, Query

    if not searcher.num_docs:
        return []
    query = Query.boolean_query([(Occur.Should, Query.term_query(schema, "words", term, "freq")) for term in terms])
    if among is not None:
        allowed = Query.const_score_query(Query.term_set_query(schema, "id", list(among)), 0.0)
        query = Query.boolean_query([(Occur.Must, query), (Occur.Must, allowed)])
    hits = searcher.search(query, min(limit, searcher.num_docs), count=False).hits
    return [Found(searcher.doc(address)["id"][0], float(score)) for score, address in hits]


def _in_fresh(
    searcher: Any, length: float, fresh: dict[str, _Fresh], terms: Sequence[str], among: Collection[str] | None
) -> list[Found]:
    """By the statistics of the index and of the fresh rows together."""
    texts = {id: row for id, row in fresh.items() if row.text}
    if not texts:
        return []
    total = searcher.num_docs + len(texts)
    mean = max(1.0, (length * searcher.num_docs + sum(row.length for row in texts.values())) / total)
    having = {term: sum(term in row.words for row in texts.values()) for term in terms}
    idf = {term: _idf(total, searcher.doc_freq("words", term) + count) for term, count in having.items() if count}
    found = [Found(id, _score(row, idf, mean)) for id, row in texts.items() if among is None or id in among]
    return [each for each in found if each.score > 0]


def _score(row: _Fresh, idf: Mapping[str, float], mean: float) -> float:
    counts, norm = row.words, _K1 * (1 - _B + _B * row.length / mean)
    return sum(
        weight * counts[term] * (_K1 + 1) / (counts[term] + norm) for term, weight in idf.items() if term in counts
    )


def _idf(total: int, having: int) -> float:
    # Deleted rows are counted until their segment is merged, so that more may have a word than there are.
    having = min(having, total)
    return math.log(1 + (total - having + 0.5) / (having + 0.5))
