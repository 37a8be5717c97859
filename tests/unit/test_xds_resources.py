"""What xDS resources say, for gRPC clients and for Envoy gateways, read back from their bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from google.protobuf import any_pb2

from nearmesh.gateway.metadata import GatewayMetadata
from nearmesh.routing.table import Endpoint, ModelRoutes, RouteTable
from nearmesh.xds.endpoints import assignment, socket_address
from nearmesh.xds.envoy_gateway import NEAREST, GatewayResources, gateway_model
from nearmesh.xds.grpc_client import NOWHERE, client_model
from nearmesh.xds.index import View
from nearmesh.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ROUTES, SEQUENCE_HEADER, Resources, sequence_cluster

OBJECTIVES = ("cheapest-in-time", "nearest", "cheapest")
METADATA = GatewayMetadata(host="127.0.0.1", port=8001, plaintext=True, certificate_sds="/c.json", ca_sds="/ca.json")
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


def endpoint(name: str, address: str = "127.0.0.1:8001", share: float = 0.0) -> Endpoint:
    return Endpoint(node=name, site=f"site-{name}", region=f"region-{name}", address=address, share=share)


def table(names: str = "abc", models: Iterable[str] = ("digits",)) -> RouteTable:
    members = tuple(endpoint(name) for name in names)
    orders = {"cheapest-in-time": members, "nearest": members[::-1], "cheapest": members}
    routes = ModelRoutes(default_objective="nearest", by_objective=orders)
    return RouteTable(region="here", models=dict.fromkeys(models, routes), nearest=members[::-1])


def client_resources(found: RouteTable, *more: str) -> Resources:
    """What a client of that region is told that asks for every model, and for `more`."""
    view = View(found, lambda model, routes: client_model("test", model, routes))
    return view.resources(found.models.keys() | set(more))


def read(kind: Any, packed: bytes) -> Any:
    message = kind()
    assert any_pb2.Any.FromString(packed).Unpack(message)
    return message


def nodes(found: Any) -> list[str]:
    return [locality.locality.sub_zone for locality in found.endpoints]


def assigned(*endpoints: Endpoint) -> Any:
    return read(endpoint_pb2.ClusterLoadAssignment, assignment("digits", endpoints))


def test_each_endpoint_has_a_priority_of_its_own_in_the_tables_order() -> None:
    found = assigned(endpoint("b", "10.0.0.2:8001"), endpoint("a", "[::1]:9"))
    assert found.cluster_name == "digits"
    assert [locality.priority for locality in found.endpoints] == [0, 1]
    assert nodes(found) == ["b", "a"]
    first = found.endpoints[0]
    assert (first.locality.region, first.locality.zone) == ("region-b", "site-b")
    assert first.load_balancing_weight.value == 1
    address = first.lb_endpoints[0].endpoint.address.socket_address
    assert (address.address, address.port_value) == ("10.0.0.2", 8001)


@pytest.mark.parametrize(
    ("shares", "priorities", "weights"),
    [
        ((0.75, 0.25, 0.0, 0.0), [0, 0, 1, 2], [75, 25, 1, 1]),
        ((1.0, 0.0), [0, 1], [100, 1]),
        ((0.999, 0.001), [0, 0], [100, 1]),
        ((0.0, 0.0, 0.0), [0, 1, 2], [1, 1, 1]),
        ((), [], []),
    ],
)
def test_who_has_a_share_is_weighed_by_it_and_the_others_stand_by(
    shares: tuple[float, ...], priorities: list[int], weights: list[int]
) -> None:
    found = assigned(*(endpoint(f"n{number}", share=share) for number, share in enumerate(shares)))
    assert [locality.priority for locality in found.endpoints] == priorities
    assert [locality.load_balancing_weight.value for locality in found.endpoints] == weights
    assert [locality.lb_endpoints[0].load_balancing_weight.value for locality in found.endpoints] == weights


def test_an_address_that_xds_cannot_carry_leaves_no_gap(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = assigned(endpoint("a", "node-a.example:8001"), endpoint("b"))
    assert nodes(found) == ["b"]
    assert found.endpoints[0].priority == 0
    assert "node-a.example:8001" in caplog.text


@pytest.mark.parametrize("text", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "x:1", "1.2.3:1"])
def test_what_is_no_socket_address(text: str) -> None:
    assert socket_address(text) is None


def test_a_client_gets_a_cluster_for_each_objective_and_one_for_the_policy() -> None:
    found = client_resources(table())
    assert set(found[LISTENER]) == {"digits"}
    names = {"digits", "digits/cheapest-in-time", "digits/nearest", "digits/cheapest", "digits/nearest/sequences"}
    assert set(found[CLUSTER]) == set(found[ENDPOINTS]) == names
    orders = {
        name: "".join(nodes(read(endpoint_pb2.ClusterLoadAssignment, data))) for name, data in found[ENDPOINTS].items()
    }
    assert orders == {
        "digits": "cba",
        "digits/nearest": "cba",
        "digits/cheapest": "abc",
        "digits/cheapest-in-time": "abc",
        "digits/nearest/sequences": "cba",
    }


def test_a_client_accepts_nodes_of_its_mesh_alone() -> None:
    cluster = read(cluster_pb2.Cluster, client_resources(table())[CLUSTER]["digits"])
    tls = tls_pb2.UpstreamTlsContext()
    assert cluster.transport_socket.typed_config.Unpack(tls)
    validation = tls.common_tls_context.validation_context
    assert [matcher.prefix for matcher in validation.match_subject_alt_names] == ["spiffe://test/node/"]
    assert validation.ca_certificate_provider_instance.instance_name == "mesh"


@pytest.mark.parametrize(("names", "ejects"), [("a", False), ("ab", True)])
def test_the_only_endpoint_is_never_ejected(names: str, ejects: bool) -> None:
    cluster = read(cluster_pb2.Cluster, client_resources(table(names))[CLUSTER]["digits"])
    assert cluster.HasField("outlier_detection") is ejects


def split_off_sequences(routes: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Those of calls that name their sequence, which have to come first, and the others."""
    found = list(routes)
    named = [route for route in found if any(h.name == SEQUENCE_HEADER for h in route.match.headers)]
    assert all(route.route.hash_policy[0].header.header_name == SEQUENCE_HEADER for route in named)
    assert {route.route.cluster for route in named} == {sequence_cluster("digits")}
    rest = [route for route in found if route not in named]
    assert not any(route.route.hash_policy for route in rest)
    by_model = [route for route in found if route.route.cluster.startswith("digits")]
    assert by_model[: len(named)] == named
    return named, rest


def test_a_client_retries_all_but_streams_and_finds_its_objective_by_header() -> None:
    listener = read(listener_pb2.Listener, client_resources(table())[LISTENER]["digits"])
    manager = http_connection_manager_pb2.HttpConnectionManager()
    assert listener.api_listener.api_listener.Unpack(manager)
    assert [f.name for f in manager.http_filters] == ["router"]
    seen = []
    by_sequence, routes = split_off_sequences(manager.route_config.virtual_hosts[0].routes)
    assert [(r.match.path == STREAM, r.route.HasField("retry_policy")) for r in by_sequence] == [
        (True, False),
        (False, True),
    ]
    for route in routes:
        wanted = [header.string_match.exact for header in route.match.headers]
        streams, retries = route.match.path == STREAM, route.route.HasField("retry_policy")
        assert streams is not retries
        seen.append((route.route.cluster, streams, *wanted))
    assert seen[-2:] == [("digits", True), ("digits", False)], "the policy's own cluster comes last"
    assert {entry for entry in seen[:-2] if not entry[1]} == {(f"digits/{name}", False, name) for name in OBJECTIVES}


def test_an_unknown_name_gets_a_listener_that_says_so_and_a_known_one_its_own() -> None:
    found, more = client_resources(table()), client_resources(table(), "nope")
    assert set(more[LISTENER]) == {"digits", "nope"}
    assert more[LISTENER]["digits"] == found[LISTENER]["digits"] != more[LISTENER]["nope"]
    # The unknown one's route has to name a cluster.
    assert set(more[CLUSTER]) - set(found[CLUSTER]) == set(more[ENDPOINTS]) - set(found[ENDPOINTS]) == {NOWHERE}
    assert not read(endpoint_pb2.ClusterLoadAssignment, more[ENDPOINTS][NOWHERE]).endpoints


def gateway_parts(found: RouteTable, metadata: GatewayMetadata = METADATA, jwks: str = '{"keys":[]}') -> Any:
    models = View(found, gateway_model).resources(found.models.keys())
    return GatewayResources("test", metadata).of(found, models, jwks)


def test_a_changed_mesh_leaves_the_gateways_listener_and_clusters_as_they_are() -> None:
    before, after = gateway_parts(table("abc")), gateway_parts(table("b", models=("digits", "more")))
    assert before[LISTENER] == after[LISTENER]
    assert before[CLUSTER].items() <= after[CLUSTER].items()
    assert before[ROUTES] != after[ROUTES]
    assert before[ENDPOINTS]["digits"] != after[ENDPOINTS]["digits"]


def test_plain_text_is_there_only_when_the_gateway_asked_for_it() -> None:
    for plaintext in (True, False):
        metadata = GatewayMetadata.parse(METADATA.to_struct() | {"plaintext": plaintext})
        listener = read(listener_pb2.Listener, gateway_parts(table(), metadata)[LISTENER]["gateway"])
        protocols = [chain.filter_chain_match.transport_protocol for chain in listener.filter_chains]
        assert protocols == (["tls", "raw_buffer"] if plaintext else ["tls"])


def routes_of(found: RouteTable) -> list[Any]:
    config = read(route_pb2.RouteConfiguration, gateway_parts(found)[ROUTES]["gateway"])
    return list(config.virtual_hosts[0].routes)


def test_a_gateway_retries_all_but_streams_and_leaves_deadlines_to_the_caller() -> None:
    forwards = [route for route in routes_of(table()) if route.HasField("route")]
    assert forwards
    for route in forwards:
        assert route.route.HasField("retry_policy") is not (route.match.path == STREAM)
        assert route.route.timeout.ToMilliseconds() == 0
        assert route.route.max_stream_duration.HasField("grpc_timeout_header_max")


def test_a_sequences_hash_chooses_among_those_who_share_the_nearests_requests_all_alike() -> None:
    shared = tuple(endpoint(name, share=share) for name, share in zip("abc", (0.9, 0.1, 0.0), strict=True))
    orders = {"cheapest-in-time": shared[::-1], "nearest": shared, "cheapest": shared[::-1]}
    routes = ModelRoutes(default_objective="cheapest", by_objective=orders)
    found = RouteTable(region="here", models={"digits": routes}, nearest=())
    parts = client_resources(found), gateway_parts(found)
    for resources in parts:
        name = sequence_cluster("digits")
        kept = read(endpoint_pb2.ClusterLoadAssignment, resources[ENDPOINTS][name])
        assert nodes(kept) == ["a", "b", "c"]
        assert [(one.priority, one.load_balancing_weight.value) for one in kept.endpoints] == [
            (0, 100),
            (0, 100),
            (1, 1),
        ]
        policies = {key: read(cluster_pb2.Cluster, data).lb_policy for key, data in resources[CLUSTER].items()}
        assert policies.pop(name) == cluster_pb2.Cluster.RING_HASH
        assert set(policies.values()) == {cluster_pb2.Cluster.ROUND_ROBIN}
    named, _ = split_off_sequences(routes_of(found))
    assert len(named) == 2


def test_a_gateway_sends_nameless_calls_to_the_nearest_and_refuses_the_repository() -> None:
    by_path = {route.match.path: route for route in routes_of(table()) if route.match.path and not route.match.headers}
    service = "/inference.GRPCInferenceService/"
    for method in ("ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex", "ModelStatistics"):
        assert by_path[service + method].route.cluster == NEAREST
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        assert by_path[service + method].direct_response.status == 403
    assert by_path[service + "ModelInfer"].direct_response.status == 400


def test_a_mesh_without_models_still_has_routes() -> None:
    empty = RouteTable(region="here", models={}, nearest=())
    objectives = [h.string_match.safe_regex for r in routes_of(empty) for h in r.match.headers if h.invert_match]
    # Envoy refuses a table with an empty pattern.
    assert [one.regex for one in objectives] == ["cheapest|cheapest-in-time|nearest"]
    assert set(gateway_parts(empty)[CLUSTER]) == {NEAREST}
    assert not client_resources(empty)


def test_equal_tables_give_equal_bytes() -> None:
    assert gateway_parts(table()) == gateway_parts(table())
    assert client_resources(table()) == client_resources(table())
