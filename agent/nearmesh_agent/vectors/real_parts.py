"""The parts that a node's vectors are made of: Milvus, our own journal, index and words, and the ledger of changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from nearmesh_agent.vectors import filters
from nearmesh_agent.vectors.across.ledger import NodeLedger
from nearmesh_agent.vectors.engine import EngineIndex
from nearmesh_agent.vectors.index import MemoryIndex
from nearmesh_agent.vectors.model import FieldType, Index, Store, Table, Where
from nearmesh_agent.vectors.parts import Door
from nearmesh_agent.vectors.settings import Settings
from nearmesh_agent.vectors.store import place
from nearmesh_agent.vectors.store.applier import Applier
from nearmesh_agent.vectors.store.journal import Journal
from nearmesh_agent.vectors.store.milvus import MilvusStore
from nearmesh_agent.vectors.store.place import Place
from nearmesh_agent.vectors.text.lexical import TantivyLexical


class RealParts:
    """`parts.Parts`, below one folder."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.path
        self._node = settings.node
        self._config = settings.config
        self._configured = Place(uri=settings.config.uri, token_variable=settings.config.token_variable)

    def journal(self) -> Journal:
        return Journal(self._folder / "journal")

    def ledger(self) -> NodeLedger:
        return NodeLedger(self._folder / "ledger.db", node=self._node)

    def store(self) -> Store:
        """Raises ConfigError where the token is not there."""
        return place.current(self._folder, self._configured).open(self._folder, self._node)

    def elsewhere(self, uri: str, token_variable: str) -> Store | None:
        to = Place(uri=uri, token_variable=token_variable)
        to.check()
        return None if to == place.current(self._folder, self._configured) else to.open(self._folder, self._node)

    def use_elsewhere(self, uri: str, token_variable: str) -> None:
        place.move(self._folder, self._configured, Place(uri=uri, token_variable=token_variable))

    def applier(
        self, journal: Journal, store: MilvusStore, *, known: Callable[[str], bool], saved: Callable[[], int]
    ) -> Applier:
        return Applier(journal, store, known=known, saved=saved, settle_s=store.settle_s)

    def index(self, table: Table, door: Door) -> Index | None:
        if self._config.index == "engine":
            # One of our own that is left here would be wrong by the time that it is used again.
            shutil.rmtree(self._of(table) / "index", ignore_errors=True)
            return EngineIndex(table, door.the_store, door.visible)
        return MemoryIndex.opened(table, self._of(table) / "index")

    def new_index(self, table: Table, door: Door) -> Index:
        if self._config.index == "engine":
            return EngineIndex(table, door.the_store, door.visible)
        return MemoryIndex.new(table, self._of(table) / "index")

    def lexical(self, table: Table) -> TantivyLexical | None:
        return TantivyLexical.load(self._of(table) / "words", table.language)

    def new_lexical(self, table: Table) -> TantivyLexical:
        return TantivyLexical.new(self._of(table) / "words", table.language)

    def read_filter(self, text: str, fields: Mapping[str, FieldType]) -> Where | None:
        return filters.read(text, fields)

    def remove(self, table: Table) -> None:
        shutil.rmtree(self._of(table), ignore_errors=True)

    def _of(self, table: Table) -> Path:
        return self._folder / "tables" / table.name
