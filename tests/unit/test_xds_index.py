"""Whom a change of the routes concerns, and what is built anew for it: no sockets, no clock."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from nearmesh.routing.table import Endpoint, ModelRoutes, RouteTable
from nearmesh.xds.index import View
from nearmesh.xds.resources import CLUSTER, ENDPOINTS, Resources

NOTHING: frozenset[str] = frozenset()


def routes(names: str) -> ModelRoutes:
    members = tuple(Endpoint(node=n, site=n, region="there", address="127.0.0.1:1") for n in names)
    return ModelRoutes(default_objective="nearest", by_objective={"nearest": members})


def table(nearest: str = "", **models: str) -> RouteTable:
    return RouteTable(
        region="here",
        models={name: routes(nodes) for name, nodes in models.items()},
        nearest=routes(nearest).by_objective["nearest"],
    )


class Watcher:
    """Woken by nobody but a test."""

    def wake(self) -> None:
        raise AssertionError


class Builder:
    """Resources that say what they were built from; remembers what it built."""

    def __init__(self) -> None:
        self.built: list[str] = []

    def __call__(self, model: str, found: ModelRoutes | None) -> Resources:
        self.built.append(model)
        nodes = "".join(e.node for e in found.by_objective["nearest"]) if found else "?"
        return {CLUSTER: {model: b"cluster"}, ENDPOINTS: {model: nodes.encode()}}


def view(found: RouteTable) -> tuple[View, Builder]:
    builder = Builder()
    return View(found, builder), builder


A, B, ALL = frozenset({"a"}), frozenset({"b"}), None


@pytest.mark.parametrize(
    ("after", "concerned"),
    [
        (table(a="xy", b="z"), ""),
        (table(a="yx", b="z"), "1,12,all"),
        (table(a="xy", b=""), "2,12,all"),
        (table(a="xy"), "2,12,all"),
        (table(a="xy", b="z", c="x"), "3,all"),
        (table(a="xy", b="z", d="x"), "all"),
        (table("x", a="xy", b="z"), "all"),
    ],
)
def test_only_who_watches_what_changed_has_to_look(after: RouteTable, concerned: str) -> None:
    watchers = {name: Watcher() for name in ("1", "2", "12", "3", "all", "idle")}
    asked = {"1": A, "2": B, "12": A | B, "3": frozenset({"c"}), "all": ALL, "idle": NOTHING}
    found, _ = view(table(a="xy", b="z"))
    for name, watcher in watchers.items():
        found.watch(watcher, asked[name])
    told = found.update(after)
    assert {name for name, watcher in watchers.items() if watcher in told} == set(filter(None, concerned.split(",")))
    assert not found.update(after)


def endpoints(found: View, models: Iterable[str]) -> dict[str, str]:
    return {name: data.decode() for name, data in found.resources([*models])[ENDPOINTS].items()}


def test_each_model_is_built_once_and_again_when_its_routes_changed() -> None:
    found, builder = view(table(a="x", b="y"))
    assert endpoints(found, "ab") == {"a": "x", "b": "y"} and endpoints(found, "a") == {"a": "x"}
    assert builder.built == ["a", "b"]
    found.update(table(a="xz", b="y"))
    assert endpoints(found, "ab") == {"a": "xz", "b": "y"}
    assert builder.built == ["a", "b", "a"]
    assert found.resources(["b"]) is found.resources(["b"]), "one for all streams"


def test_names_that_no_model_has_are_not_kept() -> None:
    found, builder = view(table(a="x"))
    assert endpoints(found, ["a", "nope"]) == {"a": "x", "nope": "?"}
    found.resources(["nope"])
    assert builder.built == ["a", "nope", "nope"]
    assert found.resources([]) == {}


def test_a_stream_hears_of_what_it_asked_for_last() -> None:
    found, builder = view(table(a="x", b="x"))
    one = Watcher()
    found.watch(one, A)
    found.watch(one, B)
    assert found.update(table(a="y", b="x")) == set()
    found.watch(one, ALL)
    assert found.update(table(a="z", b="x")) == {one}
    found.watch(one, A | B)
    assert found.update(table(a="z", b="z")) == {one}
    found.resources(["a"])
    found.leave(one)
    assert not found.watchers and found.update(table()) == set()
    builder.built.clear()
    found.resources(["a"])
    assert builder.built == ["a"], "what nobody watched any more was forgotten"
