"""What is offered to whom: worked out again for what has changed, and the same as if all of it were."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
from nearmesh_controlplane.routing import offers as module
from nearmesh_controlplane.routing.facts import Facts
from nearmesh_controlplane.routing.offers import OfferBook, Offers

from nearmesh.routing import Times
from tests.planned import node, serves, world

NODES = tuple(node(f"n{number}", 1.0 + number) for number in range(12))
REGIONS = ("eu", "us", "asia")


def facts() -> Facts:
    chance = random.Random(1)
    ways = {region: {n.id: chance.uniform(1.0, 250.0) for n in NODES} for region in REGIONS}
    return world(NODES, ways, replicas={n.id: serves(10.0, 50.0 + i, p95_ms=20.0) for i, n in enumerate(NODES)})


def offered(book: OfferBook, of: Facts, **pressure: float) -> Offers:
    found = book.offers(of, of.models[0], dict.fromkeys((n.id for n in of.nodes), 0.5) | pressure)
    assert found is not None
    return found


def served_otherwise(of: Facts, *names: str) -> Facts:
    (model,) = of.models
    changed = {name: serves(90.0, 7.0, p95_ms=170.0) for name in names}
    return dataclasses.replace(of, models=(dataclasses.replace(model, replicas={**model.replicas, **changed}),))


def farther(of: Facts, *pairs: tuple[str, str]) -> Facts:
    return dataclasses.replace(of, network={**of.network, **{pair: Times.spread(150.0, 190.0) for pair in pairs}})


CHANGES = {
    "a replica": lambda of: (served_otherwise(of, "n3"), {}),
    "three replicas and two ways": lambda of: (
        farther(served_otherwise(of, "n0", "n5", "n11"), ("eu", "n5"), ("asia", "n7")),
        {},
    ),
    "the load of two": lambda of: (of, {"n2": 0.9, "n4": 0.0}),
    "nearly all": lambda of: (served_otherwise(of, *(n.id for n in NODES[1:])), {}),
    "a node less": lambda of: (dataclasses.replace(of, nodes=NODES[1:]), {}),
    "a region less": lambda of: (dataclasses.replace(of, regions=REGIONS[1:]), {}),
    "the deadline": lambda of: (
        dataclasses.replace(of, models=(dataclasses.replace(of.models[0], deadline_ms=120.0),)),
        {},
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_as_if_all_were_worked_out(what: str) -> None:
    before = facts()
    now, pressure = CHANGES[what](before)
    now = dataclasses.replace(now)
    book = OfferBook()
    offered(book, before)
    found, whole = offered(book, now, **pressure), offered(OfferBook(), now, **pressure)
    assert found.nodes == whole.nodes
    arrays = ("network", "service", "present", "p_in_time", "p_staying", "load", "utilization", "usd_per_1000")
    for name in arrays:
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-9), name
    assert np.any(found.p_in_time < 1.0)


def test_only_what_has_changed_is_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    book, sizes, timed = OfferBook(), list[int](), module._timed

    def watched(replicas: tuple[object, ...], *rest: object) -> object:
        sizes.append(len(replicas))
        return timed(replicas, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_timed", watched)
    before = facts()
    offered(book, before)
    kept = offered(book, dataclasses.replace(before)).p_in_time
    offered(book, served_otherwise(before, "n3"))
    offered(book, farther(served_otherwise(before, "n3"), ("us", "n4"), ("eu", "n4"), ("us", "n9")))
    assert sizes == [12, 1, 2] and kept is not None
