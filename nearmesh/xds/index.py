"""What the peers of a region may be told, and whom a change concerns: built model by model, once for all streams.

A view is one region on one kind of listener. A stream watches the models that it asks for; after a change only those
are woken that watch a model whose routes are not what they were. No sockets, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Set
from typing import Protocol

from nearmesh.routing.table import ModelRoutes, RouteTable
from nearmesh.xds.resources import Resources

# The resources of one model, by type and name; None for a model that the mesh does not have.
BuildModel = Callable[[str, ModelRoutes | None], Resources]


class Watcher(Protocol):
    """A stream, as its view sees it."""

    def wake(self) -> None:
        """Something that the stream watches is no longer what it was."""
        ...


class View:
    """One region on one kind of listener."""

    def __init__(self, table: RouteTable, build: BuildModel) -> None:
        self.table = table
        self._build = build
        self._built: dict[str, Resources] = {}
        # What each stream watches; None for whatever there is.
        self._asked: dict[Watcher, frozenset[str] | None] = {}
        self._by_model: dict[str, set[Watcher]] = {}
        self._everything: set[Watcher] = set()

    @property
    def watchers(self) -> Set[Watcher]:
        """Every stream of this view."""
        return self._asked.keys()

    def watch(self, watcher: Watcher, models: frozenset[str] | None) -> None:
        """From here on `watcher` hears of these models and of no others; None for whatever there is."""
        self._forget(watcher, models or frozenset())
        self._asked[watcher] = models
        if models is None:
            self._everything.add(watcher)
        for model in models or ():
            self._by_model.setdefault(model, set()).add(watcher)

    def leave(self, watcher: Watcher) -> None:
        """The stream is over."""
        self._forget(watcher, frozenset())
        self._asked.pop(watcher, None)

    def _forget(self, watcher: Watcher, still: frozenset[str]) -> None:
        self._everything.discard(watcher)
        for model in (self._asked.get(watcher) or frozenset()) - still:
            left = self._by_model[model]
            left.discard(watcher)
            if not left:
                del self._by_model[model]
                self._built.pop(model, None)

    def update(self, table: RouteTable) -> set[Watcher]:
        """Takes over the present routes; who has to look again."""
        old, self.table = self.table, table
        if table is old:
            return set()
        others = {name for name in self._by_model.keys() | self._built.keys() if _differs(name, old, table)}
        for name in others:
            self._built.pop(name, None)
        concerned = {watcher for name in others for watcher in self._by_model.get(name, ())}
        return concerned | self._everything if self._everything and table != old else concerned

    def resources(self, models: Collection[str]) -> Resources:
        """What these models need together; not to be changed, since all streams share it."""
        if len(models) == 1:
            return self._model(next(iter(models)))
        merged: dict[str, dict[str, bytes]] = {}
        for model in models:
            for type_url, found in self._model(model).items():
                merged.setdefault(type_url, {}).update(found)
        return merged

    def _model(self, model: str) -> Resources:
        found = self._built.get(model)
        if found is None:
            routes = self.table.models.get(model)
            found = self._build(model, routes)
            # Peers may ask for any name: what the mesh does not have is not kept.
            if routes is not None:
                self._built[model] = found
        return found


def _differs(model: str, old: RouteTable, new: RouteTable) -> bool:
    before, after = old.models.get(model), new.models.get(model)
    return before is not after and before != after
