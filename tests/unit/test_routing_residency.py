"""Where data may go: rules that never yield."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from nearmesh.errors import InvalidInput
from nearmesh.routing.residency import allowed, check_regions, common, refusal


@pytest.mark.parametrize(
    ("model", "client", "where"),
    [
        ((), None, "abc"),
        (("a",), None, "a"),
        ((), {"b"}, "b"),
        (("a", "b"), {"b", "c"}, "b"),
        (("a",), {"b"}, ""),  # nothing is left, and nobody yields
        (("z",), None, ""),
        ((), frozenset(), ""),  # a rule that names no region allows none
    ],
)
def test_who_may_answer(model: Collection[str], client: Collection[str] | None, where: str) -> None:
    assert "".join(region for region in "abc" if allowed(region, model, client)) == where

    rule = common(model, client)
    assert "".join(region for region in "abc" if rule is None or region in rule) == where


def test_a_refusal_says_whose_rule_it_is() -> None:
    assert refusal("a", ("a",), {"a"}) == ""
    assert refusal("c", ("b", "a"), {"c"}) == "the model may only be served in a, b"
    assert refusal("c", (), ("b", "a")) == "clients of this region may only be answered from a, b"


def test_regions_are_labels_in_order_and_each_once() -> None:
    assert check_regions("region", ["b", "a", "b"]) == ("a", "b")
    assert check_regions("region", []) == ()
    with pytest.raises(InvalidInput, match=r"route\.regions 'Mars!' must be 1 to 63 of a-z"):
        check_regions("route.regions", ["a", "Mars!"])
    with pytest.raises(InvalidInput, match="201 regions are named; at most 200"):
        check_regions("region", [f"r{i}" for i in range(201)])
