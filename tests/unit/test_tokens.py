"""Tokens: who signed, for whom, for what, until when; anything else does not hold."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from typing import Any

import jwt
import pytest

from nearmesh.errors import InvalidInput, JoinRefused, Unauthenticated
from nearmesh.tls import new_key
from nearmesh.tokens import (
    LEEWAY_S,
    Bearer,
    JoinTicket,
    TokenIssuer,
    TokenVerifier,
    new_token_id,
    read_join_token,
)

KEY = new_key()
ISSUER = TokenIssuer(KEY, "mesh")
VERIFIER = TokenVerifier(ISSUER.jwks_json, "mesh")
TICKET = JoinTicket(
    id="id-1",
    mesh="mesh",
    kind="node",
    name="n1",
    site="site",
    region="region",
    control_plane="cp:7400",
    control_plane_mesh="cp:7401",
    ca_pem=b"-----BEGIN CERTIFICATE-----",
)


@pytest.fixture
def now_s() -> float:
    import time

    return time.time()


def signed(key: Any = KEY, kid: str | None = None, algorithm: str = "ES256", **claims: Any) -> str:
    """A bearer token with claims of one's choice; None leaves one out."""
    import time

    found = {
        "sub": "me",
        "role": "client",
        "aud": "nearmesh",
        "iss": "mesh",
        "iat": time.time(),
        # Cases are made when the file is read, minutes before the suite comes to them.
        "exp": time.time() + 3600,
    }
    found = {name: value for name, value in (found | claims).items() if value is not None}
    header = {"kid": kid or json.loads(ISSUER.jwks_json)["keys"][0]["kid"]}
    return jwt.encode(found, key, algorithm=algorithm, headers=header)


@pytest.mark.parametrize("role", ["client", "data", "operator"])
def test_a_bearer_token_says_who(role: str, now_s: float) -> None:
    token = ISSUER.access("me", role, now_s=now_s, lifetime_s=60)
    assert VERIFIER.access(token) == Bearer("me", role)  # type: ignore[arg-type]


def test_a_join_token_says_everything_a_machine_needs(now_s: float) -> None:
    token = ISSUER.join(TICKET, now_s=now_s, lifetime_s=60)
    assert VERIFIER.join(token) == TICKET == read_join_token(f" {token}\n")


@pytest.mark.parametrize(
    ("subject", "role", "lifetime_s"),
    [
        ("me", "admin", 1.0),
        ("me", "node", 1.0),
        ("", "client", 1.0),
        ("me", "client", 0.0),
        ("me", "client", -1.0),
        ("me", "client", math.nan),
        ("me", "client", math.inf),
    ],
)
def test_what_is_not_issued(subject: str, role: str, lifetime_s: float, now_s: float) -> None:
    with pytest.raises(InvalidInput):
        ISSUER.access(subject, role, now_s=now_s, lifetime_s=lifetime_s)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (signed(aud="nearmesh-join"), "does not hold"),
        (signed(aud="other"), "does not hold"),
        (signed(aud=None), "does not hold"),
        (signed(iss="other-mesh"), "does not hold"),
        (signed(iss=None), "does not hold"),
        (signed(sub=None), "does not hold"),
        (signed(exp=None), "does not hold"),
        (signed(iat=None), "does not hold"),
        (signed(iat="yesterday"), "does not hold"),
        (signed(role=None), "role None is not one of"),
        (signed(role="admin"), "role 'admin' is not one of"),
        (signed(role=["operator"]), "is not one of"),
        (signed(new_key()), "does not hold"),
        (signed(new_key(), kid="unknown"), "not signed by this mesh"),
        (signed("x" * 32, algorithm="HS256"), "does not hold"),
        (signed(algorithm="none", key=None), "does not hold"),
        ("", "does not hold"),
        ("a.b.c", "does not hold"),
        ("é" * 10, "does not hold"),
    ],
)
def test_what_does_not_hold(token: str, said: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        VERIFIER.access(token)
    assert said in caught.value.message
    with pytest.raises(JoinRefused):
        VERIFIER.join(token)


def test_another_mesh_has_other_tokens_even_with_the_same_key(now_s: float) -> None:
    token = TokenIssuer(KEY, "other").access("me", "operator", now_s=now_s, lifetime_s=60)
    with pytest.raises(Unauthenticated):
        VERIFIER.access(token)


def test_clocks_may_differ_a_little_for_bearers_and_not_at_all_for_joins(now_s: float) -> None:
    """A join token is used on the spot, and what is used up must not come back to life."""
    just = ISSUER.access("me", "client", now_s=now_s - 60, lifetime_s=60 - LEEWAY_S + 5)
    assert VERIFIER.access(just).subject == "me"
    for lifetime_s in (60 - LEEWAY_S - 5, 1):
        with pytest.raises(Unauthenticated, match="has expired"):
            VERIFIER.access(ISSUER.access("me", "client", now_s=now_s - 60, lifetime_s=lifetime_s))
    with pytest.raises(JoinRefused, match="join refused: the token has expired"):
        VERIFIER.join(ISSUER.join(TICKET, now_s=now_s - 60, lifetime_s=59))


def test_a_token_from_a_clock_that_is_ahead(now_s: float) -> None:
    assert VERIFIER.access(ISSUER.access("me", "client", now_s=now_s + LEEWAY_S - 5, lifetime_s=60))
    with pytest.raises(Unauthenticated):
        VERIFIER.access(ISSUER.access("me", "client", now_s=now_s + LEEWAY_S + 60, lifetime_s=60))


def test_changed_claims_break_the_signature(now_s: float) -> None:
    head, body, signature = ISSUER.access("me", "client", now_s=now_s, lifetime_s=60).split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["role"] = "operator"
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    with pytest.raises(Unauthenticated):
        VERIFIER.access(f"{head}.{forged}.{signature}")


def test_keys_are_replaced_while_running(now_s: float) -> None:
    verifier, younger = TokenVerifier(ISSUER.jwks_json, "mesh"), TokenIssuer(new_key(), "mesh")
    old, new = (issuer.access("me", "client", now_s=now_s, lifetime_s=60) for issuer in (ISSUER, younger))
    both = {"keys": json.loads(ISSUER.jwks_json)["keys"] + json.loads(younger.jwks_json)["keys"]}
    verifier.update(json.dumps(both))
    assert verifier.access(old) == verifier.access(new)
    verifier.update(younger.jwks_json)
    with pytest.raises(Unauthenticated):
        verifier.access(old)
    for wrong in ("", "{}", "[]", '{"keys": []}', '{"keys": 1}', "null"):
        with pytest.raises(InvalidInput, match="not a JSON Web Key Set"):
            verifier.update(wrong)
    assert verifier.access(new).subject == "me"


def test_a_token_that_held_is_remembered_until_it_ends(now_s: float) -> None:
    clock = [now_s]
    verifier = TokenVerifier(ISSUER.jwks_json, "mesh", clock=lambda: clock[0])
    token = ISSUER.access("me", "client", now_s=now_s, lifetime_s=60)
    verifier.access(token)
    # From here on no signature can be checked, so that only what is remembered holds.
    verifier._keys.clear()
    clock[0] = now_s + 60 + LEEWAY_S - 2
    assert verifier.access(token) == Bearer("me", "client")
    clock[0] = now_s + 60 + LEEWAY_S
    with pytest.raises(Unauthenticated):
        verifier.access(token)


def test_no_more_tokens_are_remembered_than_may_be(now_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearmesh.tokens.HELD_TOKENS", 2)
    verifier = TokenVerifier(ISSUER.jwks_json, "mesh")
    tokens = [ISSUER.access(f"app-{n}", "client", now_s=now_s, lifetime_s=60) for n in range(3)]
    for token in tokens:
        verifier.access(token)
    verifier._keys.clear()
    with pytest.raises(Unauthenticated):
        verifier.access(tokens[0])
    assert verifier.access(tokens[2]).subject == "app-2"


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (signed(), "bearer token, not a join token"),
        ("", "not a join token"),
        ("nonsense", "not a join token"),
        (signed(aud="nearmesh-join"), "not a join token"),
        (
            signed(aud="nearmesh-join", jti="x", kind="node", site="s", region="r", cp="c", cpm="c", ca="é"),
            "not a join",
        ),
    ],
)
def test_what_a_machine_cannot_join_with(token: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_join_token(token)


def test_ids_are_fresh() -> None:
    assert len({new_token_id() for _ in range(1000)}) == 1000


def test_the_private_key_is_not_in_the_key_set() -> None:
    (key,) = json.loads(ISSUER.jwks_json)["keys"]
    assert set(key) == {"kty", "crv", "x", "y", "kid", "alg", "use"}


def test_a_tickets_kind_is_not_taken_from_the_holder(now_s: float) -> None:
    gateway = dataclasses.replace(TICKET, kind="gateway")
    assert VERIFIER.join(ISSUER.join(gateway, now_s=now_s, lifetime_s=60)).kind == "gateway"


def test_what_does_not_hold_is_not_remembered(now_s: float) -> None:
    verifier = TokenVerifier(ISSUER.jwks_json, "mesh")
    token = TokenIssuer(new_key(), "mesh").access("me", "client", now_s=now_s, lifetime_s=60)
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            verifier.access(token)
