"""Who may call what, decided without a connection; and what a status of others means here."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest

from nearmesh.errors import (
    AlreadyExists,
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    MeshError,
    NotFound,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    Unreachable,
    Unsupported,
    error_classes,
)
from nearmesh.rpc import (
    ANYONE,
    EVERYONE,
    MACHINES,
    OPERATORS,
    PEOPLE,
    Gatekeeper,
    Identity,
    error_metadata,
    from_rpc_error,
)
from nearmesh.tls import new_key
from nearmesh.tokens import TokenIssuer, TokenVerifier
from nearmesh.transport.listener import check_loopback

ISSUER = TokenIssuer(new_key(), "mesh")
POLICY = {
    "/s.Open/": EVERYONE,
    "/s.Admin/": OPERATORS,
    "/s.Mixed/Read": PEOPLE | MACHINES,
    "/s.Mixed/": {"node"},
    "/s.Closed/": (),
}
ROLES = ["client", "data", "operator", "node", "gateway", ANYONE]


class Context:
    """What gRPC tells about a call without a certificate."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata

    def auth_context(self) -> dict[str, Any]:
        return {}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:192.0.2.1:5"


def keeper(**more: Any) -> Gatekeeper:
    return Gatekeeper(**{"mesh": "mesh", "verifier": TokenVerifier(ISSUER.jwks_json, "mesh"), "policy": POLICY, **more})


@pytest.mark.parametrize(
    ("method", "may"),
    [
        ("/s.Open/Any", set(ROLES)),
        ("/s.Admin/Any", {"operator"}),
        ("/s.Mixed/Read", {"client", "data", "operator", "node", "gateway"}),
        ("/s.Mixed/Write", {"node"}),
        ("/s.Closed/Any", set()),
        # What no policy names, nobody may call.
        ("/s.Unknown/Any", set()),
        ("/s.Mixe/Read", set()),
    ],
)
def test_roles(method: str, may: set[str]) -> None:
    for role in ROLES:
        who = Identity("" if role == ANYONE else "x", role)
        if role in may:
            keeper().check(who, method)
        else:
            with pytest.raises(Unauthenticated if role == ANYONE else PermissionDenied):
                keeper().check(who, method)


def test_p8_a_removed_machine_may_not_even_do_what_everyone_may() -> None:
    removed = {"out"}
    guarded = keeper(removed=lambda: removed)
    for role in ("node", "gateway"):
        with pytest.raises(PermissionDenied, match=f"{role}/out was removed from mesh mesh"):
            guarded.check(Identity("out", role), "/s.Open/Any")
    guarded.check(Identity("in", "node"), "/s.Open/Any")
    # A person of that name is somebody else.
    guarded.check(Identity("out", "operator"), "/s.Admin/Any")
    removed.clear()
    guarded.check(Identity("out", "node"), "/s.Open/Any")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_bearer_token_says_who_calls(scheme: str) -> None:
    token = ISSUER.access("me", "operator", now_s=time.time(), lifetime_s=60)
    for text in (f"{scheme} {token}", f"{scheme}  {token} "):
        who = keeper().admit(Context(("other", "x"), ("authorization", text)), "/s.Admin/Any")  # type: ignore[arg-type]
        assert (who, str(who)) == (Identity("me", "operator"), "operator/me")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ((), "no token: send"),
        ((("authorization", "Basic bWU6bWU="),), "scheme 'Basic' is not 'Bearer'"),
        ((("authorization", ""),), "scheme '' is not 'Bearer'"),
        ((("authorization", "Bearer "),), "does not hold"),
        ((("authorization", "Bearer x.y.z"),), "does not hold"),
    ],
)
def test_p8_refusals_are_logged(
    metadata: tuple[tuple[str, str], ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "nearmesh.rpc"), pytest.raises(Unauthenticated, match=said):
        keeper().admit(Context(*metadata), "/s.Admin/Any")  # type: ignore[arg-type]
    assert "refused peer=ipv4:192.0.2.1:5 method=/s.Admin/Any" in caplog.text


def test_a_token_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    token = TokenIssuer(new_key(), "mesh").access("me", "operator", now_s=time.time(), lifetime_s=60)
    with caplog.at_level("DEBUG"), pytest.raises(Unauthenticated):
        keeper().admit(Context(("authorization", f"Bearer {token}")), "/s.Admin/Any")  # type: ignore[arg-type]
    assert caplog.text and token not in caplog.text


def test_a_bad_token_is_refused_even_where_none_is_needed() -> None:
    with pytest.raises(Unauthenticated):
        keeper().admit(Context(("authorization", "Bearer x")), "/s.Open/Any")  # type: ignore[arg-type]


def test_an_agent_alone_on_loopback_asks_nobody() -> None:
    open_door = keeper(verifier=None, open_door=True)
    assert open_door.admit(Context(), "/s.Admin/Any") == Identity("", ANYONE)  # type: ignore[arg-type]


class Failed(grpc.RpcError):
    """A call that ended with a status."""

    def __init__(self, code: grpc.StatusCode, details: str, *metadata: tuple[str, str]) -> None:
        self._code, self._details, self._metadata = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata


@pytest.mark.parametrize("cls", list(error_classes().values()))
def test_a_reason_decides_the_class(cls: type[MeshError]) -> None:
    sent = cls("what was wrong", retry_after_ms=50)
    found = from_rpc_error(Failed(cls.status, sent.message, *error_metadata(sent)))
    assert type(found) is cls
    assert (found.message, found.retry_after_ms, found.status) == ("what was wrong", 50, cls.status)


MEANINGS = {
    "INVALID_ARGUMENT": InvalidInput,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "PERMISSION_DENIED": PermissionDenied,
    # gRPC says so of a message that is too large; that a node is busy, the node says with a reason.
    "RESOURCE_EXHAUSTED": TooLarge,
    "UNIMPLEMENTED": Unsupported,
    "UNAVAILABLE": Unreachable,
    "UNAUTHENTICATED": Unauthenticated,
}


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_without_a_reason_the_status_decides(code: grpc.StatusCode) -> None:
    for metadata in ((), (("nearmesh-reason", "OF_THE_FUTURE"),)):
        found = from_rpc_error(Failed(code, "", *metadata))
        assert type(found) is MEANINGS.get(code.name, MeshError)
        assert (found.status, found.message) == (code, f"the call failed with {code.name}")


@pytest.mark.parametrize("address", ["0.0.0.0:8001", "192.0.2.1:8001", ":8001", "[::]:8001", "example.org:8001"])
def test_without_tls_a_server_listens_on_loopback_only(address: str) -> None:
    with pytest.raises(ConfigError, match="loopback only"):
        check_loopback(address)
