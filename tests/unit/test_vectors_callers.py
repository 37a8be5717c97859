"""Whose vectors a caller reaches, how often it may ask, and what callers may send."""

from __future__ import annotations

import time

import numpy as np
import pytest
from nearmesh_agent.vectors import limits, wire
from nearmesh_agent.vectors.config import Quota, VectorsConfig
from nearmesh_agent.vectors.front import POLICY, SERVICE
from nearmesh_agent.vectors.model import FieldType, Metric, Table
from nearmesh_agent.vectors.namespaces import ANY, KEY, Rate, chosen, reach_of, told

from nearmesh.errors import ConfigError, InvalidInput, MeshError, PermissionDenied, QuotaExceeded
from nearmesh.rpc import Identity
from nearmesh.tls import new_key
from nearmesh.tokens import TokenIssuer, TokenVerifier
from nearmesh.v1 import vector_pb2 as pb

ISSUER = TokenIssuer(new_key(), "mesh")
KINDS = {"year": FieldType.INT, "price": FieldType.FLOAT, "lang": FieldType.STRING, "new": FieldType.BOOL}
TABLE = Table(name="t", dimension=2, metric=Metric.COSINE, fields=KINDS)


@pytest.mark.parametrize(
    ("role", "bound", "asked", "namespace"),
    [
        ("client", "", "", "default"),
        ("client", "", "default", "default"),
        ("client", "", "acme", None),
        ("data", "", "acme", None),
        ("client", "acme", "", "acme"),
        ("data", "acme", "acme", "acme"),
        ("data", "acme", "default", None),
        ("operator", "", "", "default"),
        ("operator", "", "acme", "acme"),
        ("operator", "acme", "other", None),
    ],
)
def test_a_token_reaches_its_own_namespace_alone(role: str, bound: str, asked: str, namespace: str | None) -> None:
    reach = reach_of(Identity("x", role, bound))
    if namespace is None:
        with pytest.raises(PermissionDenied, match=asked):
            chosen(reach, asked)
    else:
        assert chosen(reach, asked) == namespace


def test_a_namespace_travels_in_the_token() -> None:
    token = ISSUER.access("app", "data", now_s=time.time(), lifetime_s=60, namespace="acme")
    bearer = TokenVerifier(ISSUER.jwks_json, "mesh").access(token)
    assert (bearer.subject, bearer.role, bearer.namespace) == ("app", "data", "acme")
    with pytest.raises(InvalidInput, match="namespace 'No Good'"):
        ISSUER.access("app", "data", now_s=time.time(), lifetime_s=60, namespace="No Good")


def test_who_speaks_for_others_says_for_whom() -> None:
    assert told([("x", "y"), (KEY, "acme")]) == "acme"
    with pytest.raises(InvalidInput, match=KEY):
        told([("x", "y")])
    with pytest.raises(InvalidInput, match=r"namespace '\.\./x'"):
        chosen(ANY, "../x")


def test_a_rate_is_kept_over_seconds_and_says_when_to_come_again() -> None:
    rate = Rate(2.0)
    for _ in range(2):
        rate.take(100.0, "acme")
    with pytest.raises(QuotaExceeded, match="'acme' may ask 2 times a second") as refused:
        rate.take(100.0, "acme")
    assert refused.value.retry_after_ms == 501
    rate.take(100.51, "acme")
    rate.take(101.6, "acme")
    assert rate.lately(101.9) == 3.0
    # Also where nobody has called since.
    assert (rate.lately(102.0), rate.lately(103.0), rate.lately(200.0)) == (1.0, 0.0, 0.0)
    rate.take(105.0, "acme")
    assert (rate.lately(105.5), rate.lately(106.0)) == (0.0, 1.0)


def test_without_a_rate_as_many_as_come() -> None:
    rate = Rate(0.0)
    for _ in range(1000):
        rate.take(1.0, "acme")


def test_every_method_has_roles_and_writing_needs_more_than_reading() -> None:
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["VectorService"].methods}
    assert {f"/{SERVICE}/{name}" for name in methods} <= POLICY.keys()
    for name in methods:
        roles = POLICY[f"/{SERVICE}/{name}"]
        writes = name in {"CreateCollection", "UpdateCollection", "DropCollection", "Upsert", "Delete", "Reembed"}
        assert ("client" in roles) == (not writes and name != "Migrate"), name
        assert "operator" in roles and "gateway" not in roles and "anyone" not in roles
    assert POLICY[f"/{SERVICE}/Migrate"] == {"operator"}


def bytes_of(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bytes_of(1), "has 1 numbers; the collection's dimension is 2"),
        (bytes_of(1, 2, 3), "has 3 numbers"),
        (b"12345", "has 5 bytes"),
        (b"", "has 0 numbers"),
        (bytes_of(1, float("nan")), "has nan at 1"),
        (bytes_of(float("-inf"), 1), "has -inf at 0"),
        (bytes_of(0, 0), "all zeros"),
        (bytes_of(0, 3e38), "longer than 9e\\+18"),
        (bytes_of(9e18, 9e18), "so scale it"),
        # A write of the one over the other would be taken for no change.
        (bytes_of(1e-30, 2e-30), "shorter than 3e-16"),
        (bytes_of(0, 1e-40), "so scale it"),
    ],
)
def test_a_vector_that_cannot_be_compared_is_told(data: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        limits.check_vector(data, TABLE)


def test_zeros_are_a_place_where_distance_counts() -> None:
    table = Table(name="t", dimension=2, metric=Metric.L2)
    assert limits.check_vector(bytes_of(0, 0), table).tolist() == [0, 0]


def row(**more: object) -> pb.Row:
    return pb.Row(**{"id": "a", "vector": bytes_of(1, 2), **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (row(id=""), "has 0 bytes of UTF-8"),
        (row(id="é" * 129), "has 258 bytes of UTF-8"),
        (row(id="a\0b"), "zero byte"),
        (row(text="x" * 60_001), "its text has 60001 bytes"),
        (row(text="a\0"), "zero byte"),
        (row(origin=pb.Row.Origin(source="s" * 1025)), "its source has 1025 bytes"),
        (row(fields={"nope": pb.Value(int=1)}), "no field 'nope'; its fields are year, price, lang, new"),
        (row(fields={"year": pb.Value(string="x")}), "field 'year' is int, got 'x'"),
        (row(fields={"year": pb.Value(bool=True)}), "field 'year' is int, got True"),
        (row(fields={"new": pb.Value(int=1)}), "field 'new' is bool, got 1"),
        (row(fields={"price": pb.Value(float=float("nan"))}), "must be finite"),
        (row(fields={"lang": pb.Value(string="x" * 8193)}), "field 'lang' has 8193 bytes"),
        (row(fields={"lang": pb.Value()}), "field 'lang' has no value"),
    ],
)
def test_a_row_that_cannot_be_kept_is_told(message: pb.Row, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        wire.row(message, TABLE)


def test_a_row_comes_back_as_it_was() -> None:
    fields = {
        "year": pb.Value(int=2**62),
        "price": pb.Value(float=0.1),
        "lang": pb.Value(string="ü"),
        "new": pb.Value(),
    }
    fields["new"].bool = False
    origin = pb.Row.Origin(source="a.md", hash="h", part=1, parts=3, position="p. 2")
    sent = row(text="words", fields=fields, origin=origin)
    assert wire.row_message(wire.row(sent, TABLE), vector=True) == sent


def test_an_int_may_stand_for_a_float() -> None:
    assert wire.row(row(fields={"price": pb.Value(int=3)}), TABLE).fields == {"price": 3.0}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([pb.Field(name="a", type=pb.FIELD_TYPE_INT)] * 2, "'a' is there twice"),
        ([pb.Field(name="source", type=pb.FIELD_TYPE_INT)], "word that filters have"),
        ([pb.Field(name="a b", type=pb.FIELD_TYPE_INT)], "letters, digits and _"),
        ([pb.Field(name="a")], "'a' has no type"),
        ([pb.Field(name=f"f{n}", type=pb.FIELD_TYPE_INT) for n in range(65)], "at most 24"),
    ],
)
def test_fields_that_cannot_be(fields: list[pb.Field], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        wire.fields(fields)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda: limits.check_k(1001), "k is 1001"),
        (lambda: limits.check_page(1001), "page_size is 1001"),
        (lambda: limits.check_dimension(0), "dimension 0"),
        (lambda: limits.check_dimension(32769), "dimension 32769"),
        (lambda: limits.check_name("../x"), "collection '../x'"),
        (lambda: limits.check_name("x" * 64), "1 to 63"),
        (lambda: limits.check_count("ids", 10_001, 10_000), "10001 ids in one request"),
        (lambda: wire.metric(99), "metric 99"),
    ],
)
def test_what_is_too_much_or_unknown(what: object, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        what()  # type: ignore[operator]


def test_quotas_of_a_namespace_take_the_place_of_those_of_all() -> None:
    config = VectorsConfig(max_vectors=5, requests_per_second=2.0, namespaces={"acme": Quota(max_bytes=7)})
    assert config.quota("acme") == Quota(max_bytes=7)
    assert config.quota("other") == Quota(max_vectors=5, requests_per_second=2.0)
    assert VectorsConfig().serves("any") and not VectorsConfig(allow=("acme",)).serves("any")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"uri": "milvus:19530"}, "uri 'milvus:19530' does not begin with http"),
        ({"token_variable": "a-b"}, "token_variable 'a-b'"),
        ({"max_vectors": -1}, "max_vectors must be 0"),
        ({"max_collections": -1}, "max_collections must be 0"),
        ({"allow": ["No"]}, "allow: namespace 'No'"),
        ({"namespaces": {"a": {"max_bytes": -1}}}, "namespaces.a: max_bytes must be 0"),
        ({"index": "hnsw"}, "'hnsw' is not one of 'memory', 'engine'"),
        ({"enable": True}, "did you mean 'enabled'"),
    ],
)
def test_a_configuration_that_cannot_be(given: dict[str, object], said: str) -> None:
    from pathlib import Path

    from nearmesh import config

    with pytest.raises(MeshError, match=said) as wrong:
        config.parse(VectorsConfig, given, where="node.toml", base=Path())
    assert isinstance(wrong.value, ConfigError)
