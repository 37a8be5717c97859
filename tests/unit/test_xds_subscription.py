"""When a discovery stream is sent something, and what: requests in, responses out, no sockets."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from nearmesh.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ROUTES, Resources
from nearmesh.xds.subscription import Subscription


def data(text: str) -> bytes:
    return any_pb2.Any(value=text.encode()).SerializeToString()


def world(**kinds: dict[str, str]) -> Resources:
    """Resources by the first letter of their type: l, r, c, e."""
    types = {"l": LISTENER, "r": ROUTES, "c": CLUSTER, "e": ENDPOINTS}
    return {types[key]: {name: data(text) for name, text in found.items()} for key, found in kinds.items()}


class Stream:
    """A client that accepts whatever it gets."""

    def __init__(self) -> None:
        self.subscription = Subscription("test")
        self.nonces: dict[str, str] = {}

    def ask(self, kind: str, *names: str, error: str = "") -> None:
        request = discovery_pb2.DiscoveryRequest(
            type_url=kind, resource_names=names, response_nonce=self.nonces.get(kind, "")
        )
        if error:
            request.error_detail.message = error
        self.subscription.take(request)

    def get(self, resources: Resources) -> list[tuple[str, list[str]]]:
        """(last part of the type, values) of each response."""
        found = []
        for data in self.subscription.pending(resources):
            response = discovery_pb2.DiscoveryResponse.FromString(data)
            self.nonces[response.type_url] = response.nonce
            found.append((response.type_url.rpartition(".")[2], [one.value.decode() for one in response.resources]))
        return found


WORLD: dict[str, Any] = {"l": {"a": "la", "b": "lb"}, "c": {"a": "ca", "b": "cb"}, "e": {"a": "ea", "b": "eb"}}


def test_only_what_was_asked_for_is_sent_and_only_once() -> None:
    stream = Stream()
    assert stream.get(world(**WORLD)) == []
    stream.ask(LISTENER, "a")
    assert stream.get(world(**WORLD)) == [("Listener", ["la"])]
    stream.ask(LISTENER, "a")
    assert stream.get(world(**WORLD)) == []
    stream.ask(LISTENER, "a", "b")
    assert stream.get(world(**WORLD)) == [("Listener", ["la", "lb"])]


def test_an_unknown_name_is_answered_by_its_absence() -> None:
    stream = Stream()
    stream.ask(LISTENER, "nope")
    assert stream.get(world(**WORLD)) == [("Listener", [])]


def test_no_names_ask_for_all_now_and_later() -> None:
    stream = Stream()
    stream.ask(CLUSTER)
    assert stream.get(world(**WORLD)) == [("Cluster", ["ca", "cb"])]
    assert stream.get(world(c={"a": "ca", "d": "cd"})) == [
        ("Cluster", ["ca", "cb", "cd"]),
        ("Cluster", ["ca", "cd"]),
    ]


def test_of_endpoints_only_the_changed_are_sent() -> None:
    stream = Stream()
    stream.ask(ENDPOINTS, "a", "b")
    assert stream.get(world(**WORLD)) == [("ClusterLoadAssignment", ["ea", "eb"])]
    assert stream.get(world(e={"a": "ea", "b": "new"})) == [("ClusterLoadAssignment", ["new"])]
    assert stream.get(world(e={"a": "ea"})) == [], "endpoints leave with their cluster"


def test_a_changed_cluster_gets_its_endpoints_again() -> None:
    stream = Stream()
    stream.ask(CLUSTER)
    stream.ask(ENDPOINTS, "a", "b")
    stream.get(world(**WORLD))
    changed = world(**(WORLD | {"c": {"a": "ca", "b": "other"}}))
    assert stream.get(changed) == [("Cluster", ["ca", "other"]), ("ClusterLoadAssignment", ["ea", "eb"])]


def test_clusters_come_before_the_routes_that_name_them_and_leave_after() -> None:
    stream = Stream()
    for kind in (LISTENER, CLUSTER):
        stream.ask(kind)
    stream.ask(ENDPOINTS, "a", "b", "d")
    stream.ask(ROUTES, "r")
    everything = world(**WORLD, r={"r": "one"})
    assert [kind for kind, _ in stream.get(everything)] == [
        "Cluster",
        "ClusterLoadAssignment",
        "Listener",
        "RouteConfiguration",
    ]
    fewer = world(l=WORLD["l"], c={"a": "ca"}, e={"a": "ea"}, r={"r": "two"})
    assert stream.get(fewer) == [("RouteConfiguration", ["two"]), ("Cluster", ["ca"])]


def test_a_client_has_what_is_gone_until_it_asks_for_what_takes_its_place() -> None:
    stream = Stream()
    stream.ask(LISTENER, "m")
    stream.ask(CLUSTER, "a")
    stream.get(world(l={"m": "to a"}, c={"a": "ca"}))
    after = world(l={"m": "to b"}, c={"b": "cb"})
    assert stream.get(after) == [("Listener", ["to b"])]
    stream.ask(CLUSTER, "a", "b")
    assert stream.get(after) == [("Cluster", ["ca", "cb"])]
    stream.ask(CLUSTER, "b")
    assert stream.get(after) == []
    stream.ask(CLUSTER, "b", "a")
    assert stream.get(after) == [("Cluster", ["cb"])]


def test_a_refusal_is_counted_told_and_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream()
    stream.ask(LISTENER, "a")
    stream.get(world(**WORLD))
    with caplog.at_level(logging.WARNING):
        stream.ask(LISTENER, "a", error="no such filter")
    assert stream.subscription.refused == 1
    assert "no such filter" in caplog.text
    assert stream.get(world(**WORLD)) == []
    assert stream.get(world(l={"a": "better"})) == [("Listener", ["better"])]


def test_a_request_that_crossed_with_a_response_changes_nothing() -> None:
    stream = Stream()
    stream.ask(LISTENER, "a")
    stream.get(world(**WORLD))
    old = dict(stream.nonces)
    stream.get(world(l={"a": "newer"}))
    stream.nonces = old
    stream.ask(LISTENER, "a", "b", error="late")
    assert stream.subscription.refused == 0
    assert stream.subscription.models == {"a"}


def test_a_name_dropped_and_asked_for_again_is_sent_again() -> None:
    stream = Stream()
    stream.ask(ENDPOINTS, "a", "b")
    stream.get(world(**WORLD))
    stream.ask(ENDPOINTS, "a")
    assert stream.get(world(**WORLD)) == []
    stream.ask(ENDPOINTS, "a", "b")
    assert stream.get(world(**WORLD)) == [("ClusterLoadAssignment", ["eb"])]


def test_types_that_nobody_offers_are_ignored() -> None:
    stream = Stream()
    stream.ask("type.googleapis.com/envoy.service.runtime.v3.Runtime", "x")
    assert stream.get(world(**WORLD)) == []
